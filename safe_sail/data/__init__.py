"""Readers of what users bring: taxonomies, concept texts, corpora."""
