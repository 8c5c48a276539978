"""Links between SAE features and the parts of a model: what was tested, by which measure, and what held."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug
from safe_sail.records.subjects import FeatureId


class LinkKind(StrEnum):
    """What stands at the other end of a link."""

    HEAD = "head"
    NEURON = "neuron"
    CIRCUIT = "circuit"
    NEURON_SET = "neuron_set"
    DIRECTION = "direction"
    REFUSAL = "refusal"
    """The refusal metric of the first reply token."""


class LinkFlow(StrEnum):
    """Which end writes and which reads."""

    INTO_FEATURE = "into_feature"
    """The other end writes what the feature reads: it stands before the feature's site."""
    OUT_OF_FEATURE = "out_of_feature"
    """The feature writes along the other end, or the other end stands behind the feature and reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkMeasure:
    """One of the two measures of a link, with everything that chance does to it."""

    value: Estimate
    """Mean over pairs of the text with the concept minus the text without it; n counts pairs."""
    control: Estimate
    """Mean size of the same number for random units of the same layers and kinds, random sets or random directions; n
    counts them."""
    control_high: float
    """Their 95 % quantile."""
    shuffled: float
    """The value with the texts of a pair in each other's place, for random pairs."""
    q_value: float
    """Student's t over pairs, two-sided, after Benjamini-Hochberg over all tests of this measure in the study."""

    def __post_init__(self) -> None:
        require(0 <= self.q_value <= 1, f"a q-value lies in [0, 1]; got {self.q_value}.")
        require(self.control_high >= 0, f"control sizes are not negative; got {self.control_high}.")

    def holds(self, alpha: float) -> bool:
        """Whether it is significant and larger than what 95 % of the controls do."""
        return self.q_value < alpha and abs(self.value.value) > self.control_high


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureLink:
    """What one feature has to do with one head, neuron, set of units, direction, or with refusal."""

    feature: FeatureId
    concept: str
    """Whose texts were read."""
    kind: LinkKind
    target: str
    """`L3.H5`, `L3.N902`, or the slug of a circuit, a neuron set or a direction; `refusal` of the refusal metric."""
    flow: LinkFlow
    weights: LinkMeasure | None
    """Into the feature: share of its pre-activation at its peak token that the other end writes directly. Out of it:
    what the feature writes along the unit direction there; of a neuron behind it, what the neuron's activation loses
    when the feature is taken out of what it reads alone. None where no such path leads there."""
    cause: LinkMeasure | None
    """Into the feature: its activation at its peak token without the intervention minus that with the units ablated.
    Out of it: the projection or the refusal metric at the last token, minus that with the feature ablated; of a neuron
    its activation at the feature's peak token, of a head or a set its output at the last token along its mean
    difference between choosing texts with and without the concept. None where the other end does not depend on it."""
    cosine: float | None = None
    """Of the feature's decoder row with a direction."""
    is_linked: bool
    """Whether the cause holds; where no cause was measured, whether the weights hold."""
    is_direct: bool
    """Whether it is linked and the weights hold too, with the same sign: the effect has a linear path."""

    def __post_init__(self) -> None:
        require(bool(self.target), f"a link of {self.feature} needs a target; got an empty name.")
        require(self.is_linked or not self.is_direct, f"{self.feature} to {self.target}: direct and not linked.")
        require(self.weights is not None or self.cause is not None, f"{self.feature} to {self.target}: no measure.")

    @property
    def strength(self) -> float:
        """Size of the causal effect, or of the direct share where no cause was measured."""
        measure = self.cause or self.weights
        assert measure is not None
        return abs(measure.value.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkStudy:
    """All links of one SAE's features with one model that a run tested, and what chance gave in the same tests."""

    slug: str
    model_id: str
    """Model that was run."""
    sae: str
    ablation: str
    """mean: units are set to their mean over texts without the concept; zero: to 0."""
    alpha: float
    """False discovery rate below which a measure is significant."""
    n_pairs: Mapping[str, int]
    """Judging pairs by concept; other pairs chose the features and the units that were tested."""
    n_tested: int
    n_linked: int
    n_linked_shuffled: int
    """Links found by the same rule after the texts of random pairs changed places."""
    n_passes: int
    """Forward passes for the causal measures."""
    notes: tuple[str, ...]
    """What a reader must know: what could not be measured and why, as sentences."""
    links: tuple[FeatureLink, ...]
    """By concept, feature, flow; linked ones first, then by descending strength (ties: target)."""

    def __post_init__(self) -> None:
        require_slug("link study", self.slug)
        require(0 < self.alpha < 1, f"{self.slug}: alpha lies between 0 and 1; got {self.alpha}.")
        require(
            self.n_linked <= self.n_tested and self.n_linked_shuffled <= self.n_tested,
            f"{self.slug}: {self.n_linked} and {self.n_linked_shuffled} links of {self.n_tested} tests.",
        )
