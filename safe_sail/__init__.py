"""Safe-SAIL: which features, heads, neurons and directions of a language model carry safety, and how we know."""

__version__ = "0.1.0"
