"""How SAEs and their features carry concepts: reconstruction, scores, specificity, rankings."""

from collections.abc import Sequence
from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require
from safe_sail.records.subjects import FeatureId


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeFacts:
    """How well an SAE reconstructs, measured on a stated number of tokens."""

    sae: str
    l0: float
    """Mean number of active features per content token."""
    explained_variance: float
    """1 - residual variance / total variance over content tokens."""
    ce_recovered: float
    """(CE ablated - CE spliced) / (CE ablated - CE plain); 1 is perfect, ablated = site replaced by zero."""
    dead_share: float
    """Share of features that never fired on these tokens."""
    n_tokens: int

    def __post_init__(self) -> None:
        require(self.n_tokens > 0, f"facts of {self.sae} need tokens; got n_tokens={self.n_tokens}.")
        require(0 <= self.dead_share <= 1, f"dead share of {self.sae} lies in [0, 1]; got {self.dead_share}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptScore:
    """How well one feature tells a concept's texts from others, on texts that did not choose the feature."""

    feature: FeatureId
    concept: str
    auroc: Estimate
    """Chance that a positive text's maximum activation exceeds a negative one's; n counts texts of both classes."""
    rate_positive: float
    """Share of positive texts on which the feature fires."""
    rate_negative: float
    """Share of negative texts on which the feature fires."""
    rate_gap: Estimate
    """rate_positive - rate_negative."""
    n_positive: int
    n_negative: int
    q_value: float
    """Two-sided Mann-Whitney p-value after Benjamini-Hochberg over all features of the SAE for this concept."""

    def __post_init__(self) -> None:
        for name in ("rate_positive", "rate_negative", "q_value"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} of {self.feature} lies in [0, 1]; got {value}.")
        require(self.n_positive > 0 and self.n_negative > 0, f"{self.feature}: both classes need texts.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeScore:
    """How specifically one SAE carries one concept: its best feature, chosen on one split and judged on another."""

    sae: str
    concept: str
    best_feature: FeatureId
    """Feature with the largest rate gap on the choosing split (ties: AUROC, then the lower index)."""
    auroc: Estimate
    """Of that feature on the judging split."""
    rate_gap: Estimate
    """Of that feature on the judging split."""
    f1: Estimate
    """F1 of "the feature fires" as a detector of the concept, on the judging split."""
    control_rate_gap: Estimate
    """The same procedure with shuffled labels, over several shuffles: what chance alone finds; n counts shuffles."""
    n_specific: int
    """Features with q_value below 0.05 and a rate gap above one half on the judging split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeSpecificity:
    """How much of one SAE tells one concept's contrastive pairs apart, before any feature is explained."""

    sae: str
    concept: str
    n_features: int
    """Width of the SAE: I_CDF times this is a number of features."""
    thresholds: tuple[float, ...]
    """Values of t, ascending."""
    l0: tuple[int, ...]
    """L0_t: features that tell at least the share t of the judging pairs apart."""
    l0_null: tuple[int, ...]
    """The same with the texts' roles swapped."""
    i_cdf: Estimate
    """Mean distinguishing frequency of all features; n counts judging pairs, and so below."""
    i_cdf_null: Estimate
    """The same with the texts' roles swapped."""
    specific: Estimate
    """I_CDF with the null removed, from the features that did better than their null on the choosing pairs; the rest
    count zero. Chance adds nothing to it on average."""
    n_specific: int
    """Features whose frequency exceeds their null by more than one half, sign test, q-value below 0.05 over all."""

    def __post_init__(self) -> None:
        require(self.n_features > 0, f"{self.sae} must have features; got {self.n_features}.")
        require(
            len(self.thresholds) == len(self.l0) == len(self.l0_null) > 0,
            f"{self.sae}, {self.concept}: as many counts as thresholds; got {len(self.thresholds)}, {len(self.l0)}, "
            f"{len(self.l0_null)}.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeRanking:
    """One SAE's place among the candidates that one run scored on the same texts."""

    sae: str
    place: int
    """1 is the best by `specific`, or by rate gap where the texts hold no pairs (ties: slug)."""
    specific: Estimate | None
    """Mean over concepts of `SaeSpecificity.specific`; n counts concepts, the interval is over concepts and pairs. None
    where no concept has pairs."""
    rate_gap: Estimate
    """Mean over concepts of the best features' rate gap; n counts concepts, the interval is over concepts and texts."""
    n_specific: float | None
    """Mean over concepts of `SaeSpecificity.n_specific`."""
    tied_with: tuple[str, ...]
    """SAEs that this one cannot be told from: the 95 % interval of the paired difference holds 0; by place."""

    def __post_init__(self) -> None:
        require(self.place > 0, f"places of {self.sae} count from 1; got {self.place}.")
        require(self.sae not in self.tied_with, f"{self.sae} is tied with itself.")


def highest_first(scores: Sequence[SaeScore]) -> list[SaeScore]:
    """Scores by descending rate gap (ties: slug, then concept)."""
    return sorted(scores, key=lambda s: (-s.rate_gap.value, s.sae, s.concept))
