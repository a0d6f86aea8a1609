"""Messages between deployments: frozen values over numpy arrays, which validate themselves."""
