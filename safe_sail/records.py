"""Every result that leaves the library: frozen, keyword-only, validated, without torch.

A record is what a paper's table would hold: it can be stored, served and compared without the model that made it.
Numbers that were estimated are an `Estimate`: they carry their n and their interval.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from safe_sail.errors import BadRecord
from safe_sail.sites import Site

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise BadRecord(message)


def _require_slug(kind: str, slug: str) -> None:
    _require(
        _SLUG.fullmatch(slug) is not None,
        f"{kind} `{slug}` is no slug; expected letters, digits, `.`, `_`, `-`, first a letter or a digit.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number estimated from n observations, with its interval."""

    value: float
    """Point estimate; finite."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of independent observations (texts, pairs, contexts) behind it."""
    level: float = 0.95
    """Coverage that the interval aims at."""

    def __post_init__(self) -> None:
        _require(
            all(math.isfinite(x) for x in (self.value, self.low, self.high)),
            f"an estimate is finite; got {self.value} [{self.low}, {self.high}]. Leave an undefined score out.",
        )
        _require(self.low <= self.high, f"interval [{self.low}, {self.high}] runs backwards.")
        _require(self.n > 0, f"an estimate needs at least one observation; got n={self.n}.")
        _require(0 < self.level < 1, f"interval level lies between 0 and 1; got {self.level}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """One model and the sizes a reader needs to place a site, a head or a neuron in it."""

    model_id: str
    """Slug by which everything else names the model."""
    architecture: str
    """Hugging Face class, as `LlamaForCausalLM`."""
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    d_vocab: int
    source: str
    """Folder or hub name it was loaded from."""

    def __post_init__(self) -> None:
        _require_slug("model id", self.model_id)
        for name in ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab"):
            _require(getattr(self, name) > 0, f"{name} of {self.model_id} must be positive; got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeRef:
    """One sparse autoencoder: where it comes from, and the model and site it was trained on."""

    slug: str
    """Our name of it, as `organism.resid_post.3.topk8-1024`; registry ids hold slashes and cannot serve in a path."""
    release: str | None
    """SAELens release, or None for a folder or file."""
    sae_id: str
    """Id inside the release, or the folder's or file's name."""
    model_id: str | None
    """Model it was trained for; None where its metadata is silent."""
    site: Site
    """Where it reads."""
    d_in: int
    """Width of what it reads."""
    width: int
    """Number of features, d_sae."""
    architecture: str
    """SAELens' name of it: standard, topk, jumprelu, gated, transcoder, ... or safe-sail-topk."""

    def __post_init__(self) -> None:
        _require_slug("SAE", self.slug)
        _require(self.width > 0, f"SAE {self.slug} must have features; got width {self.width}.")
        _require(self.d_in > 0, f"SAE {self.slug} must read something; got d_in {self.d_in}.")


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
        _require(self.n_tokens > 0, f"facts of {self.sae} need tokens; got n_tokens={self.n_tokens}.")
        _require(0 <= self.dead_share <= 1, f"dead share of {self.sae} lies in [0, 1]; got {self.dead_share}.")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class FeatureId:
    """One feature of one SAE; written `slug/index`."""

    sae: str
    """Slug of the SAE."""
    index: int
    """Column of the encoder, counted from 0."""

    def __post_init__(self) -> None:
        _require_slug("SAE", self.sae)
        _require(self.index >= 0, f"feature index of {self.sae} counts from 0; got {self.index}.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Feature of its written form.

        Raises:
            BadRecord: the text is not `slug/index`.
        """
        slug, slash, index = text.rpartition("/")
        _require(bool(slash) and index.isdecimal(), f"`{text}` is not a feature; expected `sae-slug/index`.")
        return cls(sae=slug, index=int(index))

    def __str__(self) -> str:
        return f"{self.sae}/{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Concept:
    """One safety concept and its place in the taxonomy: domain > category > concept."""

    name: str
    category: str
    domain: str
    harmful: bool

    def __post_init__(self) -> None:
        _require(bool(self.name), "a concept needs a name; got an empty one.")


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
            _require(0 <= value <= 1, f"{name} of {self.feature} lies in [0, 1]; got {value}.")
        _require(self.n_positive > 0 and self.n_negative > 0, f"{self.feature}: both classes need texts.")


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
        _require(self.n_features > 0, f"{self.sae} must have features; got {self.n_features}.")
        _require(
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
        _require(self.place > 0, f"places of {self.sae} count from 1; got {self.place}.")
        _require(self.sae not in self.tied_with, f"{self.sae} is tied with itself.")


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
        _require(
            n > 0 and n == len(self.token_ids) == len(self.activations),
            f"context {self.source_id}: as many tokens as ids and activations, at least one; got {n}, "
            f"{len(self.token_ids)}, {len(self.activations)}.",
        )
        _require(
            all(math.isfinite(a) for a in self.activations), f"context {self.source_id}: an activation is not finite."
        )
        _require(
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
        _require(
            len(self.edges) == len(self.counts) + 1,
            f"a histogram has one more edge than counts; got {len(self.edges)} and {len(self.counts)}.",
        )
        _require(all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)), "histogram edges must ascend.")


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
        _require(self.n_tokens_seen > 0, f"{self.feature}: no token was seen.")
        _require(0 <= self.density <= 1, f"{self.feature}: density lies in [0, 1]; got {self.density}.")
        peaks = [context.peak_activation for context in self.contexts]
        _require(peaks == sorted(peaks, reverse=True), f"{self.feature}: contexts must descend by peak activation.")
        _require(
            len({context.source_id for context in self.contexts}) == len(self.contexts),
            f"{self.feature}: a document window appears twice.",
        )


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
        _require(bool(self.text.strip()), f"{self.feature}: an empty explanation is a failure, not an explanation.")
        _require(bool(self.explainer) and bool(self.prompt_version), f"{self.feature}: name explainer and version.")


class JudgeMethod(StrEnum):
    """How an explanation is judged."""

    TOKEN_SIMULATION = "token_simulation"
    """Pearson correlation of predicted and true activation over tokens."""
    SEGMENT_SIMULATION = "segment_simulation"
    """Phi coefficient of predicted and true activity over short segments."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """One run of a command: enough to run it again."""

    run_id: str
    command: str
    seed: int
    settings: Mapping[str, object]
    """The command's settings, whole, as JSON values."""
    git_commit: str | None
    """None outside a git checkout; ends in `+changes` where files differed."""
    versions: Mapping[str, str]
    """Python and the packages that decide numbers."""
    device: str
    started: datetime
    finished: datetime | None = None
    """None while running, or where the run was killed."""

    def __post_init__(self) -> None:
        _require_slug("run id", self.run_id)
        for name, moment in (("started", self.started), ("finished", self.finished)):
            _require(moment is None or moment.tzinfo is not None, f"{name} of run {self.run_id} needs a time zone.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """A direction, or a subspace of several, in the residual stream that carries one behaviour."""

    slug: str
    """Our name of it, as `aligned.refusal`."""
    model_id: str
    site: Site
    """Where it was read; addition writes there, ablation acts at every write."""
    position: int
    """Token it was read at, counted back from the prompt's end: -1 is the last."""
    estimator: str
    """raw, projected, winsorised or standardised difference in means; or concepts or repeated, for a subspace."""
    vectors: tuple[tuple[float, ...], ...]
    """One row, the difference at its own length; or the orthonormal rows of a subspace, in the order they are used."""

    def __post_init__(self) -> None:
        _require_slug("direction", self.slug)
        _require(self.position < 0, f"{self.slug}: positions count back from -1; got {self.position}.")
        widths = {len(row) for row in self.vectors}
        _require(len(widths) == 1 and 0 not in widths, f"{self.slug}: needs rows of one width; got {sorted(widths)}.")
        for row in self.vectors:
            _require(all(math.isfinite(x) for x in row) and any(row), f"{self.slug}: a row is zero or not finite.")

    @property
    def rank(self) -> int:
        """Number of rows: 1 for a single direction."""
        return len(self.vectors)


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionCandidate:
    """One cell of the selection table; scores are None where an earlier filter made them needless."""

    position: int
    layer: int
    norm: float
    """Length of the difference in means, in residual units."""
    massive_ratio: float
    """(largest coordinate deviation / median) / sqrt(d_model); above 0.3 one coordinate drowns the means."""
    bypass: Estimate | None
    """Refusal metric of harmful prompts with the candidate ablated, in logits; the interval is over prompts."""
    induce: Estimate | None
    """Refusal metric of harmless prompts with the candidate added, in logits."""
    kl: Estimate | None
    """KL(plain || ablated) on harmless prompts, in nats."""
    reasons: tuple[str, ...]
    """Filters that it failed; empty for one that may be chosen."""

    def __post_init__(self) -> None:
        _require(self.position < 0 <= self.layer, f"cell ({self.position}, {self.layer}): position < 0 <= layer.")
        _require(math.isfinite(self.norm) and self.norm >= 0, f"a norm is finite, not negative; got {self.norm}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalToken:
    """A first token of replies that tells refused prompts from answered ones."""

    token_id: int
    text: str
    p_harmful: float
    """Mean probability after harmful prompts."""
    p_harmless: float
    """Mean probability after harmless prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyShares:
    """What a model replies to prompts of one class under one intervention, judged over whole replies."""

    intervention: str
    """none, ablation, addition, subtraction, or random ablation, random addition, random subspace."""
    prompts: str
    """harmful or harmless, with the split."""
    rank: int
    """Directions in the intervention; 0 for none."""
    n_prompts: int
    n_draws: int
    """Random draws averaged over; 1 for an intervention that is not drawn."""
    refusal: Estimate
    """n counts prompts and the interval is Wilson's; of random interventions n counts draws and the interval is
    Student's."""
    compliance: Estimate
    degenerate: Estimate
    """Broken text; neither refusal nor compliance."""

    def __post_init__(self) -> None:
        total = self.refusal.value + self.compliance.value + self.degenerate.value
        _require(abs(total - 1) < 1e-6, f"shares of {self.intervention} on {self.prompts} sum to {total}, not 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class UtilityCost:
    """What an intervention costs on texts it should leave alone."""

    intervention: str
    texts: str
    """Name of the text set."""
    cross_entropy: float
    """Nats per predicted token."""
    increase: Estimate
    """Over no intervention, nats per token; the interval is over texts, paired."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankEffect:
    """One point of a rank-effect curve: the first `rank` rows of a subspace are ablated."""

    rank: int
    shares: ReplyShares
    """On harmful validation prompts."""
    control: ReplyShares
    """The same for random subspaces of this rank."""
    bypass: float
    """Mean refusal metric of harmful validation prompts, in logits."""
    kl: Estimate
    """KL(plain || ablated) on harmless validation prompts, in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionTrial:
    """One candidate tried by generation: ablated, on harmful validation prompts."""

    position: int
    layer: int
    shares: ReplyShares
    passed: bool
    """Whether it left at most the allowed share of refusals and of broken text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionSelection:
    """The published selection over the candidates of one estimator, and whether replies confirm it."""

    estimator: str
    candidates: tuple[DirectionCandidate, ...]
    """Every position and layer, positions from the far end, layers upwards."""
    winner: tuple[int, int] | None
    """Position and layer that the published rule selects; None where the filters left none."""
    lead: Estimate | None
    """Bypass of the runner-up minus that of the winner, paired over prompts; an interval with 0 is inside the noise."""
    trials: tuple[DirectionTrial, ...]
    """Candidates that were tried by generation, in the order of the rule."""
    confirmed: tuple[int, int] | None
    """The first that passed; another than the winner where the winner's replies still refuse."""
    reason: str
    """Why none was confirmed; empty where one was."""
    n_launches: int
    """Forward passes that scored the candidates."""
    n_launches_naive: int
    """Forward passes of the published loop over the same candidates and prompts."""

    def __post_init__(self) -> None:
        _require(
            (self.confirmed is None) == bool(self.reason),
            f"{self.estimator}: a selection is confirmed or has a reason; got {self.confirmed} and `{self.reason}`.",
        )

    @property
    def lead_is_noise(self) -> bool:
        """Whether the runner-up may be as good as the winner: the lead's interval holds 0."""
        return self.lead is not None and self.lead.low <= 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionSearch:
    """Everything a search for a refusal direction saw and concluded."""

    slug: str
    model_id: str
    outcome: str
    """single: one direction, confirmed by generation. subspace: several. none: neither passes."""
    direction: Direction | None
    """What is ablated; None exactly when the outcome is none."""
    added: Direction | None
    """The single direction that is added: the one above where it is single; None where no candidate induces refusal."""
    coefficient: float
    """Multiple of `added` that is added: the smallest that induces refusal in whole sentences on validation prompts."""
    induced: ReplyShares | None
    """Replies to harmless validation prompts under that addition."""
    reasons: tuple[str, ...]
    """Why earlier ways failed: one sentence for each estimator and subspace that was not confirmed."""
    notes: tuple[str, ...]
    """What a reader of the numbers must know, as sentences."""
    prompt_prefix: str
    """What the chat template puts before the instruction, a system prompt included."""
    post_instruction: tuple[str, ...]
    """Tokens of the template after the instruction: the positions of the candidates, -1 last."""
    refusal_tokens: tuple[RefusalToken, ...]
    n_prompts: Mapping[str, int]
    """Prompts used, by class and split: after filtering by the refusal metric; `... given` counts before."""
    selections: tuple[DirectionSelection, ...]
    """One for each estimator that was tried, in order; the last is the confirmed one, if any is."""
    curves: Mapping[str, tuple[RankEffect, ...]]
    """Rank-effect curves by the way the subspace was built; empty where a single direction was confirmed."""

    def __post_init__(self) -> None:
        _require_slug("direction search", self.slug)
        _require(self.outcome in ("single", "subspace", "none"), f"{self.slug}: unknown outcome {self.outcome}.")
        rank = 0 if self.direction is None else self.direction.rank
        fits = {"none": rank == 0, "single": rank == 1, "subspace": rank >= 1}[self.outcome]
        _require(fits, f"{self.slug}: outcome {self.outcome} and a direction of {rank} rows.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionEvaluation:
    """What a direction does on prompts that neither made nor selected it."""

    direction: str
    """Slug of the direction."""
    replies: tuple[ReplyShares, ...]
    utility: tuple[UtilityCost, ...]
    kl: Estimate
    """KL(plain || ablated) on held-out harmless prompts, in nats, first reply token."""
    first_token: Mapping[str, Estimate]
    """Refusal metric, in logits, by intervention and prompts as `ablation on harmful held out`."""
    weights_gap: float | None
    """Largest difference of logits between ablation by hooks and by edited weights; None where the edit is refused."""
    weights_note: str
    """Why the weight edit was refused; empty where it was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureAlignment:
    """How one SAE feature writes along a direction."""

    feature: FeatureId
    cosine: float
    """Of its decoder row with the direction."""
    p_value: float
    """Share of random directions whose largest cosine with any feature of the SAE, in size, is at least this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeReading:
    """A direction in the features of one SAE."""

    sae: str
    features: tuple[FeatureAlignment, ...]
    """Descending by the size of the cosine (ties: index)."""
    rebuilt: tuple[float, ...]
    """Cosine of the direction with its least-squares rebuild from the k features above, k from 1."""
    rebuilt_control: tuple[float, ...]
    """The same for random directions and their own best features, mean."""
    n_random: int
    """Random directions behind p-values and control."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectionReading:
    """Where prompts stand along a direction, layer by layer, and which SAE features write it."""

    direction: str
    cosines: Mapping[str, tuple[Estimate, ...]]
    """By model and prompts, as `aligned harmful`: cosine of the last token's `resid_pre` with it, layer by layer."""
    saes: tuple[SaeReading, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadAttribution:
    """What one attention head writes along a direction at the last token, and where it looks, by condition."""

    layer: int
    head: int
    written: Mapping[str, Estimate]
    """Projection of the head's output on the unit direction, by condition."""
    instruction: Mapping[str, float]
    """Attention from the last token to the instruction, by condition."""
    suffix: Mapping[str, float]
    """Attention from the last token to the suffix; 0 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuffixStudy:
    """What a suffix does to a direction on refused prompts; conditions are plain, suffix, random suffix."""

    direction: str
    n_suffix_tokens: int
    cosines: Mapping[str, tuple[Estimate, ...]]
    """Cosine of the last token's `resid_pre` with the direction, per layer, by condition."""
    refusal_metric: Mapping[str, Estimate]
    """In logits, by condition."""
    heads: tuple[HeadAttribution, ...]
    """The heads that write most along the direction on plain prompts, most first."""


def highest_first(scores: Sequence[SaeScore]) -> list[SaeScore]:
    """Scores by descending rate gap (ties: slug, then concept)."""
    return sorted(scores, key=lambda s: (-s.rate_gap.value, s.sae, s.concept))
