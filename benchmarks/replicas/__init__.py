"""Several replicas: where prompts go, what a fault costs, and how throughput grows."""
