"""The embedded default: a small safety model organism with labelled texts."""
