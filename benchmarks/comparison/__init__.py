"""Against others on the same weights: a plain server, SAM 2's own predictor and its mask generator."""
