"""Video files: keeps them on disk, and decodes their frames."""
