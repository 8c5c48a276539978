"""Judges of replies and measures of usefulness."""
