"""ResponseEncoder, the CPU deployment, and one file for each response format."""
