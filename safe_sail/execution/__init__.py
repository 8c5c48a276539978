"""Where the parts of a long computation run: in this process, or on the workers of a Ray cluster."""
