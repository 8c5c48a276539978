"""Safety neurons: which MLP neurons differ between two models, what patching them does, and what they tell of a prompt.

Source: Chen et al. 2025, Towards Understanding Safety Alignment: A Mechanistic Perspective from Safety Neurons,
arXiv:2406.14144; docs/methods/safety_neurons.md says where we deviate and why.
"""
