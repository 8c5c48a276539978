"""Refusal directions: find, select, test causally, read.

The single direction that mediates refusal is a published finding (Arditi et al. 2024, arXiv:2406.11717). It is kept
here to measure how brittle safety training is and to build detectors: ablated or edited weights stay inside the
evaluation.
"""
