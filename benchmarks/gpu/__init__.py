"""What forecasting costs and saves at the sizes of production, on a GPU (``docs/gpu.md``)."""
