"""Files for annotation tools, read back with the tools' own code: `make test-tools`."""
