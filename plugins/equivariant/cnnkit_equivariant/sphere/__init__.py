"""Fields on the sphere: grids, meshes, and their harmonic transforms."""
