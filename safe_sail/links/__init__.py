"""What SAE features have to do with heads, neurons, circuits and directions: by weights, and by cause."""
