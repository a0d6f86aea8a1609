"""Videos: from a request to the masks of its frames. No HTTP."""
