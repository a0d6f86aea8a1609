"""Pictures: from a file of any kind to `H×W×3` uint8 RGB. Without Ray, and without HTTP."""
