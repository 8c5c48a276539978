"""Sparse autoencoders as live handles: loading, encoding, training."""
