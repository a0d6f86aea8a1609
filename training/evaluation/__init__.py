"""Figures and sheets of a checkpoint: on held-out scenes, and on real photographs."""
