"""Training of the bundled demo model: scenes, prompts, the model and the loop, export and evaluation."""
