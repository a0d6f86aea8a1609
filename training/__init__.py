"""Training of the bundled demo model: scenes, losses, the loop, export and evaluation."""
