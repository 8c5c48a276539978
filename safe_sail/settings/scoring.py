"""How SAEs are scored, and how what features fire on is collected."""

from dataclasses import dataclass

from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """How SAEs are scored on concepts."""

    n_choose: int = 64
    """Texts of each class, per concept, that choose the best feature. 64 as in Arditi et al.'s validation sets."""
    n_judge: int = 64
    """Texts of each class, per concept, that judge it; none of them chose."""
    n_bootstrap: int = 1000
    """Resamples behind each 95 % interval; below 1,000 its ends move by more than a hundredth between seeds."""
    n_shuffles: int = 20
    """Label shuffles behind the control."""
    batch_size: int = 64
    """Texts in one forward pass."""
    max_bytes: int = 2**31
    """Memory for what is kept of the texts: 4 bytes per text and feature of all SAEs. Concepts are read in blocks that
    fit, so texts that several concepts share are read once per block; one concept must fit."""

    def __post_init__(self) -> None:
        at_least(self, 2, "n_choose", "n_judge", "n_bootstrap", "n_shuffles")
        at_least(self, 1, "batch_size", "max_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSettings:
    """How contexts are collected from a corpus."""

    n_documents: int = 2000
    """Documents of the organism's corpus; about 73,000 tokens."""
    n_contexts: int = 20
    """Top contexts kept per feature; Neuronpedia and SAEBench keep as many."""
    n_random: int = 40
    """Windows drawn at random on which every feature is shown too; twice n_contexts, since half of them judge."""
    n_spread: int = 20
    """Windows drawn from those on which the feature fires, which spreads them over its quantiles; as n_contexts."""
    n_near: int = 10
    """Near misses kept per feature: silent windows on which its nearest features fire, from a second, short pass."""
    n_neighbours: int = 5
    """Nearest features whose windows may be near misses; with n_near, two windows of each."""
    window: int = 96
    """Tokens in one context; the longest of 20,000 documents of the organism has 83."""
    batch_size: int = 64
    """Windows in one forward pass."""
    n_bins: int = 24
    """Bins of the activation histogram."""

    def __post_init__(self) -> None:
        at_least(self, 1, "n_documents", "batch_size", "n_bins", "n_neighbours")
        at_least(self, 2, "n_contexts", "window")
        at_least(self, 0, "n_random", "n_spread", "n_near")
