"""The operator's tool: measures a model on the machine that will serve it, and proposes its settings."""
