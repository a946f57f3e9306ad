"""What several generators share: the Hunyuan3D loop, TRELLIS's flow Euler sampler, SAM 3D's ODE solver."""
