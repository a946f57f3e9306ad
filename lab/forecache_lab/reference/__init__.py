"""Small networks trained here, through the upstreams' own classes, so that drift on a CPU means something."""
