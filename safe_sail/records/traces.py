"""What one prompt does in a model: the features of every token, two prompts side by side, steered answers, verdicts."""

import math
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.records.checks import require
from safe_sail.sites import Site


class FeatureScale(StrEnum):
    """What an activation is divided by, so that features can be compared with each other."""

    MAXIMUM = "maximum"
    """The feature's largest activation on the corpus that its contexts were collected from: 1 is as strong as ever."""
    QUANTILE_999 = "quantile_999"
    """Q(0.999) of its activations over all content tokens of that corpus, zeros included."""


class Alignment(StrEnum):
    """Which tokens of two prompts are compared."""

    MEAN = "mean"
    """Means over the content tokens of each: for texts that share no tokens, as of two languages."""
    TOKEN = "token"
    """Equal runs of token ids, each with its counterpart: for one text with and without an insertion or a suffix."""


class SteerKind(StrEnum):
    """How an answer is steered."""

    ADD = "add"
    """The feature's decoder row, or the direction, is added times the coefficient."""
    ABLATE = "ablate"
    """What the feature writes is taken away at every token but the first; of a direction, every write of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a model said, greedily."""

    text: str
    """Without special tokens."""
    token_ids: tuple[int, ...]
    """As they were generated, the end-of-text token included; empty for a text that nobody generated."""
    label: str
    """refusal, compliance or degenerate, by the judge of phrases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedText:
    """A prompt with its answer, token by token."""

    prompt: str
    tokens: tuple[str, ...]
    """Each token's own part of the text, template and answer included."""
    token_ids: tuple[int, ...]
    """The prompt's, then exactly those that were generated."""
    n_prompt: int
    """Tokens of the prompt with its template; the others are the answer's."""
    is_content: tuple[bool, ...]
    """False at special tokens."""
    reply: Reply | None
    """None where no answer was asked for."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        require(
            n == len(self.tokens) == len(self.is_content) and 0 < self.n_prompt <= n,
            f"a traced text has as many tokens as ids; got {len(self.tokens)}, {n}, {len(self.is_content)}.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFeature:
    """A feature on one token."""

    index: int
    activation: float
    """In SAE units."""
    normalised: float | None
    """Activation over the feature's scale; None where no scale is stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedFeature:
    """A feature over a whole text."""

    index: int
    scale: float | None
    activations: tuple[float, ...]
    """One for each token, in SAE units."""

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, self.activations)), f"feature {self.index}: an activation is not finite.")

    @property
    def peak(self) -> int:
        """Token on which it is largest (ties: the first)."""
        return self.activations.index(max(self.activations))


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeTrace:
    """One SAE's features on every token of a text."""

    sae: str
    site: Site
    scale: FeatureScale
    is_normalised: bool
    """Whether features are ordered by normalised activation, those without a scale last; else by activation."""
    n_scaled: int
    """Features of the SAE whose scale is stored."""
    n_active: tuple[int, ...]
    """Features that are not zero, by token."""
    top: tuple[tuple[TokenFeature, ...], ...]
    """The first features of each token in that order (ties: the lower index)."""
    strongest: tuple[TracedFeature, ...]
    """Features with the largest such value on any content token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTrace:
    """Every token's features, layer by layer."""

    model_id: str
    text: TracedText
    layers: tuple[SaeTrace, ...]
    """By site in the order of computation, then by slug."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferingFeature:
    """A feature that two texts activate differently."""

    index: int
    first: float
    """Mean over the compared tokens of the first text; in units of its scale where the comparison is normalised."""
    second: float
    scale: float | None
    chance_high: float
    """With tokens exchanged between the texts at random, 95 % of draws give no feature a larger difference, each
    measured in its own spread over tokens: this is that bound in this feature's units."""
    first_activations: tuple[float, ...]
    """On every token of the first text, in SAE units."""
    second_activations: tuple[float, ...]

    def __post_init__(self) -> None:
        require(self.chance_high >= 0, f"feature {self.index}: a size is not negative; got {self.chance_high}.")

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the difference is larger than exchanged tokens make it."""
        return abs(self.difference) > self.chance_high


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeComparison:
    """One SAE's features on two texts."""

    sae: str
    site: Site
    scale: FeatureScale
    is_normalised: bool
    """Whether values are in units of each feature's scale; then features without a scale are left out."""
    n_left_out: int
    """Features that are active in either text and have no scale."""
    features: tuple[DifferingFeature, ...]
    """By size of the difference, descending (ties: the lower index)."""
    n_random: int
    """Random exchanges of tokens behind `chance_high`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptComparison:
    """Two prompts in one model, feature by feature."""

    model_id: str
    alignment: Alignment
    first: TracedText
    second: TracedText
    pairs: tuple[tuple[int, int], ...]
    """Places of counterparts in both texts; none where means are compared."""
    n_compared: tuple[int, int]
    """Tokens compared of each text."""
    layers: tuple[SaeComparison, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """One prompt's answer, plain and steered."""

    model_id: str
    prompt: str
    kind: SteerKind
    target: str
    """`SAE/index` of a feature, or slug of a direction."""
    site: Site
    """Where the feature is read and written, or the direction was read; a direction is ablated at every write."""
    coefficient: float
    """As asked; 0 for an ablation."""
    length: float
    """Norm of what is added to each token, in residual units; 0 for an ablation."""
    plain: Reply
    steered: Reply
    kl: float
    """KL(plain || steered) in nats on the first reply token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardVerdict:
    """What a guard says of one prompt before the model answers."""

    model_id: str
    prompt: str
    features: str
    """What the guard reads: safety neurons, SAE features, refusal direction."""
    probability: float
    """That the answer would be unsafe."""
    threshold: float
    """From here on the prompt is refused; what it lets pass was measured when the guard was trained."""
    refused: bool
    reply: Reply
    """The refusal text, which no model generated, or the model's own answer."""
