"""What tests and benchmarks share: images, weights, the oracle, load generators, and a running Serve."""
