"""Where arrays live: meshes and layouts."""
