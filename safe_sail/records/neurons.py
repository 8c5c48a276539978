"""Safety neurons: how much each changes between two models, what patching them does, and what they tell of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug
from safe_sail.records.units import NeuronRef


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronChange:
    """How much every neuron changes between two models that read the same texts."""

    slug: str
    first_model: str
    """Whose behaviour patching changes: before alignment, as a rule."""
    second_model: str
    """Whose activations are put in."""
    positions: str
    """predicting: positions that predict a completion token. completion: the completion tokens themselves."""
    text_source: str
    """first or second: which model wrote the completions."""
    n_texts: int
    n_empty: int
    """Prompts left out because the model's reply was empty."""
    n_positions: int
    """Tokens behind each score."""
    scores: tuple[tuple[float, ...], ...]
    """Root-mean-square change, in units of activation, by layer and index; a layer without neurons is empty."""

    def __post_init__(self) -> None:
        require_slug("neuron change", self.slug)
        require(self.n_texts > 0 and self.n_positions > 0, f"{self.slug}: scores need texts and positions.")
        require(any(self.scores), f"{self.slug}: expected scores of at least one neuron.")

    @property
    def n_neurons(self) -> int:
        """Neurons that were ranked."""
        return sum(map(len, self.scores))

    def top(self, n_neurons: int) -> tuple[NeuronRef, ...]:
        """The most changed neurons, most first (ties: layer, then index)."""
        every = [(-score, layer, index) for layer, row in enumerate(self.scores) for index, score in enumerate(row)]
        return tuple(NeuronRef(layer, index) for _, layer, index in sorted(every)[:n_neurons])


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchEffect:
    """What the first model does while some neurons hold the second model's activations."""

    n_neurons: int
    share: float
    """Of all ranked neurons."""
    first_rank: int | None
    """Rank of the first of them, 0 the most changed; None where they were not chosen by rank."""
    layer_counts: tuple[int, ...]
    """How many lie in each layer."""
    score: Estimate
    """Mean of the scorer over replies; the interval is over prompts."""
    effect: Estimate
    """Causal effect: 0 the first model's score, 1 the second's; it may leave that range."""
    same_replies: Estimate
    """Share of replies that are the second model's, token by token; Wilson interval."""
    random_effect: Estimate | None
    """The same effect of random neurons with as many in each layer, mean over draws, interval over prompts; None where
    the neurons are all there are."""
    random_draws: tuple[float, ...]
    """Effect of each draw."""
    p_value: float | None
    """Paired t-test over prompts, the scores under these neurons against the mean under random ones; two-sided."""

    def __post_init__(self) -> None:
        require(sum(self.layer_counts) == self.n_neurons, f"{self.n_neurons} neurons, by layer {self.layer_counts}.")
        require(
            (self.random_effect is None) == (self.p_value is None) == (not self.random_draws),
            "a patch has random draws with their effect and p-value, or none of the three.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownNeurons:
    """How well the change scores recover neurons that are known to carry the difference."""

    n_known: int
    found: Estimate
    """Share of them among as many most changed neurons: precision and recall at once; Wilson interval."""
    chance: float
    """The same share for a random ranking."""
    patched: PatchEffect
    """What patching exactly the known neurons does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronSearch:
    """Everything a search for safety neurons saw and concluded; the scores of all neurons are its `NeuronChange`."""

    slug: str
    """Also that of its `NeuronChange`."""
    first_model: str
    second_model: str
    scorer: str
    """What scored the replies, as `refusal phrases`."""
    n_neurons: int
    """All neurons that were ranked."""
    neurons: tuple[NeuronRef, ...]
    """The most changed ones, most first, as many as `kept_share` of the settings."""
    change: tuple[float, ...]
    """Their change scores."""
    first_score: Estimate
    second_score: Estimate
    curve: tuple[PatchEffect, ...]
    """Patching the k most changed neurons, k ascending."""
    windows: tuple[PatchEffect, ...]
    """Patching consecutive windows of ranks alone."""
    needed: int | None
    """Smallest k of the curve whose effect is at least the wanted one; None where none is."""
    effect_wanted: float
    known: KnownNeurons | None
    """Where the truth is known."""
    n_failed: int
    """Replies that the scorer gave no score."""
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        require_slug("neuron search", self.slug)
        require(len(self.neurons) == len(self.change), f"{self.slug}: one change score for each neuron.")
        counts = [point.n_neurons for point in self.curve]
        require(counts == sorted(set(counts)), f"{self.slug}: the curve ascends; got {counts}.")
        require(self.needed is None or self.needed in counts, f"{self.slug}: {self.needed} is no point of the curve.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SetOverlap:
    """How many of the k most changed neurons two contrasts share."""

    n_neurons: int
    share: float
    """Of k."""
    chance: float
    """The same share for two random rankings."""
    random_layers: float
    """The same for random sets with these two sets' numbers in each layer, mean over draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossPatch:
    """What putting one aligned model's activations into the other does to safety and to helpfulness."""

    first_model: str
    """Which is patched."""
    second_model: str
    """Whose activations are put in."""
    n_neurons: int
    before: Mapping[str, Estimate]
    """Scores of the first model, by scorer: `safety`, `helpfulness`."""
    after: Mapping[str, Estimate]
    """Scores of the patched model."""
    moved: Mapping[str, Estimate]
    """After minus before, paired over prompts."""
    random_moved: Mapping[str, Estimate]
    """The same for random neurons with as many in each layer, mean over draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeuronTax:
    """Whether safety and helpfulness change the same neurons, and what patching one does to the other."""

    slug: str
    base_model: str
    safety_model: str
    helpful_model: str
    spearman: Estimate
    """Rank correlation of the two contrasts' change scores over all neurons; the interval is over resampled neurons."""
    overlaps: tuple[SetOverlap, ...]
    n_common: int
    """Neurons that both contrasts have among their most changed ones: those that are cross-patched."""
    crosses: tuple[CrossPatch, ...]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        require_slug("neuron tax", self.slug)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardScore:
    """How well one kind of features tells, before a reply, that it will be unsafe; on held-out prompts."""

    features: str
    """safety neurons, SAE features, or refusal direction."""
    n_features: int
    layers: tuple[int, ...]
    """Layers they are read in."""
    auroc: Estimate
    random_auroc: Estimate
    """Of random neurons of the same layers, mean over draws."""
    random_draws: tuple[float, ...]
    """AUROC of each draw."""
    gain: Estimate
    """AUROC minus that of random neurons, paired over prompts."""
    brier: Estimate
    """Mean squared error of the probability."""
    calibration_error: Estimate
    """Expected calibration error, 10 bins of equal width."""
    threshold: float
    """Probability from which on a prompt is refused; chosen on validation prompts."""
    caught: Estimate
    """Share of the prompts with an unsafe answer that are refused at the threshold."""
    false_refusals: Mapping[str, Estimate]
    """Share refused at the threshold, by kind of harmless prompt, as `borderline`."""
    roc: tuple[tuple[float, float], ...]
    """Share of safe answers refused against share of unsafe ones refused, threshold falling."""

    @property
    def exceeds_random(self) -> bool:
        """Whether the gain's interval excludes 0."""
        return self.gain.low > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardEvaluation:
    """Guards of one model, kind by kind of features, judged once on held-out prompts."""

    slug: str
    model_id: str
    """The model that is guarded."""
    change: str
    """Slug of the `NeuronChange` that chose the neurons."""
    scorer: str
    """What said that an answer is unsafe."""
    n_train: int
    n_validation: int
    n_test: int
    n_unsafe: Mapping[str, int]
    """Prompts with an unsafe answer, by split."""
    scores: tuple[GuardScore, ...]
    kept: str
    """Features of the guard that was kept for use."""
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        require_slug("guard", self.slug)
        require(
            self.kept in [score.features for score in self.scores], f"{self.slug}: no score of the kept `{self.kept}`."
        )
