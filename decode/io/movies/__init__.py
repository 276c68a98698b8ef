"""Movies on disk, one module a format."""
