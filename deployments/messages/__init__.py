"""What travels between deployments: frozen values that validate themselves, over numpy arrays."""
