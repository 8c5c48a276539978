"""The commands of `safe-sail`: each reads options, loads, iterates and saves."""
