"""What is measured: distances of latents, meshes, voxels and poses, and their intervals by bootstrap."""
