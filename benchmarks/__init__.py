"""What the service costs and gains, measured in ratios within one run."""
