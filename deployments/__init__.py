"""Segment Anything 2 as a Ray Serve deployment graph."""
