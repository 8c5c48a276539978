"""Refusal directions: what was found, the search behind it, and what it does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from safe_sail.records.basics import Estimate
from safe_sail.records.checks import require, require_slug
from safe_sail.records.subjects import FeatureId
from safe_sail.sites import Site


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
        require_slug("direction", self.slug)
        require(self.position < 0, f"{self.slug}: positions count back from -1; got {self.position}.")
        widths = {len(row) for row in self.vectors}
        require(len(widths) == 1 and 0 not in widths, f"{self.slug}: needs rows of one width; got {sorted(widths)}.")
        for row in self.vectors:
            require(all(math.isfinite(x) for x in row) and any(row), f"{self.slug}: a row is zero or not finite.")

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
        require(self.position < 0 <= self.layer, f"cell ({self.position}, {self.layer}): position < 0 <= layer.")
        require(math.isfinite(self.norm) and self.norm >= 0, f"a norm is finite, not negative; got {self.norm}.")


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
        require(abs(total - 1) < 1e-6, f"shares of {self.intervention} on {self.prompts} sum to {total}, not 1.")


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
        require(
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
        require_slug("direction search", self.slug)
        require(self.outcome in ("single", "subspace", "none"), f"{self.slug}: unknown outcome {self.outcome}.")
        rank = 0 if self.direction is None else self.direction.rank
        fits = {"none": rank == 0, "single": rank == 1, "subspace": rank >= 1}[self.outcome]
        require(fits, f"{self.slug}: outcome {self.outcome} and a direction of {rank} rows.")


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
