"""Features of sparse autoencoders: scored on concepts, seen in contexts, explained and judged."""
