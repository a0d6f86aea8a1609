"""Scenes drawn by code: what they are made of, how they are put together, and the pool of them on disk."""
