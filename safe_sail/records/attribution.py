"""Heads of a model ranked by what their absence does."""

from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug
from safe_sail.records.units import HeadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScore:
    """What one head's absence does to the next token."""

    head: HeadRef
    harmful: Estimate
    """KL(full || without it) in nats after harmful prompts; n counts prompts."""
    harmless: Estimate
    """The same after harmless prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadScores:
    """Every head of a model, by what its absence does after harmful prompts."""

    slug: str
    model_id: str
    ablation: str
    """zero, mean or resample."""
    heads: tuple[HeadScore, ...]
    """By descending mean over harmful prompts (ties: layer, then index)."""

    def __post_init__(self) -> None:
        require_slug("head scores", self.slug)
        values = [one.harmful.value for one in self.heads]
        require(values == sorted(values, reverse=True), f"{self.slug}: heads come by descending score.")
