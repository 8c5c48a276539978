"""What a feature fires on, what is said of it, and how far that can be trusted."""

import math
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require
from safe_sail.records.subjects import FeatureId


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One piece of text on which a feature was observed."""

    tokens: tuple[str, ...]
    """The text, token by token, as the tokenizer writes each; white space is kept."""
    token_ids: tuple[int, ...]
    activations: tuple[float, ...]
    """The feature's activation on each token, in SAE units, as float32 values."""
    peak: int
    """Position of the largest activation (ties: the first)."""
    source_id: str
    """Where the text comes from: document and window."""

    def __post_init__(self) -> None:
        n = len(self.tokens)
        require(
            n > 0 and n == len(self.token_ids) == len(self.activations),
            f"context {self.source_id}: as many tokens as ids and activations, at least one; got {n}, "
            f"{len(self.token_ids)}, {len(self.activations)}.",
        )
        require(
            all(math.isfinite(a) for a in self.activations), f"context {self.source_id}: an activation is not finite."
        )
        require(
            0 <= self.peak < n and self.activations[self.peak] == max(self.activations),
            f"context {self.source_id}: position {self.peak} does not hold the largest activation.",
        )

    @property
    def peak_activation(self) -> float:
        """Largest activation in the context."""
        return self.activations[self.peak]


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts of positive activations between edges."""

    edges: tuple[float, ...]
    """Ascending; one more than counts."""
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        require(
            len(self.edges) == len(self.counts) + 1,
            f"a histogram has one more edge than counts; got {len(self.edges)} and {len(self.counts)}.",
        )
        require(all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)), "histogram edges must ascend.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TopContexts:
    """What a feature fires on: its top contexts and how often it fires at all."""

    feature: FeatureId
    contexts: tuple[Context, ...]
    """Descending by peak activation (ties: source id); one entry a document window."""
    n_tokens_seen: int
    """Content tokens of the corpus; special and padding tokens do not count."""
    density: float
    """Share of content tokens on which the feature is positive."""
    max_activation: float
    histogram: Histogram | None
    """None for a feature that never fired."""

    def __post_init__(self) -> None:
        require(self.n_tokens_seen > 0, f"{self.feature}: no token was seen.")
        require(0 <= self.density <= 1, f"{self.feature}: density lies in [0, 1]; got {self.density}.")
        peaks = [context.peak_activation for context in self.contexts]
        require(peaks == sorted(peaks, reverse=True), f"{self.feature}: contexts must descend by peak activation.")
        require(
            len({context.source_id for context in self.contexts}) == len(self.contexts),
            f"{self.feature}: a document window appears twice.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSample:
    """What a feature does on texts that its largest activations did not choose: some active, most silent."""

    feature: FeatureId
    spread: tuple[Context, ...]
    """A uniform sample of the windows on which it fires, top ones left out; descending by peak activation."""
    random: tuple[Context, ...]
    """Windows drawn from all, the same for every feature of a run, top ones left out; mostly silent."""
    near_misses: tuple[Context, ...]
    """Silent windows on which features nearest to this one fire most, and twins of a concept's texts; nearest first."""
    quantile_999: float
    """Q(0.999) of its activations over all content tokens, zeros included; off by at most a sixteenth of itself."""

    def __post_init__(self) -> None:
        loud = [context.source_id for context in self.near_misses if context.peak_activation > 0]
        require(not loud, f"{self.feature}: a near miss is silent; it fires in {', '.join(loud[:3])}.")
        require(
            math.isfinite(self.quantile_999) and self.quantile_999 >= 0,
            f"{self.feature}: Q(0.999) is finite and at least 0; got {self.quantile_999}.",
        )

    @property
    def active(self) -> tuple[Context, ...]:
        """Contexts on which it fires: the spread, then random ones."""
        return (*self.spread, *(context for context in self.random if context.peak_activation > 0))

    @property
    def silent(self) -> tuple[Context, ...]:
        """Contexts on which it does not fire: near misses, then random ones."""
        return (*self.near_misses, *(context for context in self.random if context.peak_activation <= 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What one explainer says a feature fires on."""

    feature: FeatureId
    text: str
    explainer: str
    """Model id of the explainer; `lexical` for the one that needs no model."""
    prompt_version: str
    """Changes whenever the prompt or the rule that wrote the text changes."""

    def __post_init__(self) -> None:
        require(bool(self.text.strip()), f"{self.feature}: an empty explanation is a failure, not an explanation.")
        require(bool(self.explainer) and bool(self.prompt_version), f"{self.feature}: name explainer and version.")


class JudgeMethod(StrEnum):
    """How an explanation is judged."""

    TOKEN_SIMULATION = "token_simulation"
    """Pearson correlation of predicted and true activation over tokens."""
    SEGMENT_SIMULATION = "segment_simulation"
    """Phi coefficient of predicted and true activity over short segments."""
    DETECTION = "detection"
    """Balanced accuracy of telling active contexts from silent ones, as many of each, near misses among them."""
    FUZZING = "fuzzing"
    """Balanced accuracy of telling right marks on active tokens from wrong ones, as many of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplanationScore:
    """How well an explanation predicts its feature on contexts that the explainer never saw."""

    feature: FeatureId
    explainer: str
    prompt_version: str
    method: JudgeMethod
    score: Estimate
    """n counts contexts; the interval is over contexts."""
    control: Estimate
    """The same for explanations of other features: what any explanation would reach; n counts explanations."""
    n_excluded: int
    """Contexts left out because truth or prediction was constant there."""
