"""What a direction does on prompts that neither made nor chose it, each number with n, interval and control.

1. Replies to harmful prompts: plain, ablated, with the direction subtracted, and under random ablations.
2. Replies to harmless prompts: plain, ablated, with the direction added, and with random directions of that length.
3. The refusal metric of the first reply token under each, and KL of ablation on harmless prompts.
4. Cross-entropy on three text sets: documents, reference answers to harmless prompts, the model's own plain replies.
5. Edited weights against hooks, where the edit is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safe_sail.directions.interventions import ablation, addition
from safe_sail.directions.orthogonalise import refusal_reason, weights_gap
from safe_sail.directions.projection import orthonormal_basis, random_directions
from safe_sail.directions.replies import (
    Generation,
    generate_replies,
    random_shares,
    shares_of,
)
from safe_sail.errors import EmptyConcept, NoDirection
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.utility import (
    TextLosses,
    TokenRow,
    kl_divergence,
    last_logits,
    plain_rows,
    refusal_metric,
    text_losses,
    token_rows,
)
from safe_sail.model.chat import render_chat
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch, trimmed
from safe_sail.records import Direction, DirectionEvaluation, DirectionSearch, Estimate, ReplyShares, UtilityCost
from safe_sail.settings import DirectionSettings
from safe_sail.sites import Site

Progress = Callable[[str], None]
Draw = Callable[[], Mapping[Site, Edit]]
Listener = Callable[[str, str, Sequence[str]], None]
"""Told the prompts' name, the intervention and its replies, in the order of the prompts."""

UTILITY_DRAWS = 3
"""Random ablations behind the cross-entropy control."""


class EvaluationTexts(NamedTuple):
    """Held-out texts; prompts without chat markup."""

    harmful: Sequence[str]
    harmless: Sequence[str]
    documents: Sequence[str]
    answered: Sequence[tuple[str, str]]
    """Harmless prompts with reference answers."""


class Interventions(NamedTuple):
    """Edits by name; random ones are drawn anew at each call."""

    fixed: dict[str, Mapping[Site, Edit]]
    random_ablation: Draw
    random_addition: Draw | None
    rank: int


def silent(message: str) -> None:
    """No progress report."""


def unheard(prompts: str, intervention: str, replies: Sequence[str]) -> None:
    """Nobody listens to the replies."""


def basis_of(direction: Direction) -> Tensor:
    """Orthonormal rows with the direction's span, float64."""
    return orthonormal_basis(torch.tensor(direction.vectors, dtype=torch.float64))


def interventions_of(handle: HookedModel, search: DirectionSearch, generator: torch.Generator) -> Interventions:
    """Ablation of what was found, addition and subtraction of the added direction, and random ones of rank and length.

    Raises:
        NoDirection: the search ended with none.
    """
    if search.direction is None:
        raise NoDirection(f"{search.slug}: the search found no direction to evaluate. {' '.join(search.reasons)}")
    basis, d_model = basis_of(search.direction), handle.dims.d_model
    fixed: dict[str, Mapping[Site, Edit]] = {"none": NO_EDITS, "ablation": ablation(handle, basis)}
    random_addition: Draw | None = None
    if search.added is not None:
        layer = search.added.site.layer
        assert layer is not None
        vector = torch.tensor(search.added.vectors[0], dtype=torch.float64)
        fixed["addition"] = addition(layer, vector, search.coefficient)
        fixed["subtraction"] = addition(layer, vector, -1.0)
        length = float(vector.norm()) * search.coefficient

        def random_addition() -> Mapping[Site, Edit]:
            return addition(layer, random_directions(1, d_model, length, generator)[0])

    def random_ablation() -> Mapping[Site, Edit]:
        return ablation(handle, orthonormal_basis(random_directions(len(basis), d_model, 1.0, generator)))

    return Interventions(fixed, random_ablation, random_addition, len(basis))


def evaluate_direction(
    handle: HookedModel,
    search: DirectionSearch,
    texts: EvaluationTexts,
    settings: DirectionSettings,
    *,
    generator: torch.Generator,
    generation: Generation | None = None,
    progress: Progress = silent,
    on_replies: Listener = unheard,
) -> DirectionEvaluation:
    """Replies, first-token metric, KL, cross-entropy and the weight edit of what a search found.

    `generation` may carry another judge than the phrase judge; `on_replies` hears every reply but those under random
    interventions, so that a second judge can read them.

    Raises:
        NoDirection: the search ended with none.
        EmptyConcept: a set of texts is empty.
    """
    for name, given in texts._asdict().items():
        if not given:
            raise EmptyConcept(f"{name}: an evaluation needs texts, got none.")
    edits = interventions_of(handle, search, generator)
    generation = generation or Generation(settings.max_new_tokens, settings.batch_rows)
    harmful = handle.chat_batch(list(texts.harmful)[: settings.n_evaluate], system=settings.system)
    harmless = handle.chat_batch(list(texts.harmless)[: settings.n_evaluate], system=settings.system)
    progress("replies")
    own, replies = _replies(handle, harmful, harmless, edits, generation, settings, on_replies)
    progress("first tokens")
    first_token, kl = _first_tokens(handle, search, harmful, harmless, edits, settings, generator)
    progress("cross-entropy")
    assert search.direction is not None
    utility = _utility(handle, texts, own, edits, settings, generator)
    reason = refusal_reason(handle)
    probe = trimmed(harmful, range(min(8, len(harmful))))
    return DirectionEvaluation(
        direction=search.direction.slug,
        replies=tuple(replies),
        utility=tuple(utility),
        kl=kl,
        first_token=first_token,
        weights_gap=None if reason else weights_gap(handle, probe, basis_of(search.direction)),
        weights_note=reason,
    )


def _replies(
    handle: HookedModel,
    harmful: TokenBatch,
    harmless: TokenBatch,
    edits: Interventions,
    generation: Generation,
    settings: DirectionSettings,
    on_replies: Listener,
) -> tuple[list[str], list[ReplyShares]]:
    """The plain replies to harmless prompts, and all shares."""
    plan = [
        ("harmful held out", harmful, ("none", "ablation", "subtraction"), ("random ablation", edits.random_ablation)),
        ("harmless held out", harmless, ("none", "ablation", "addition"), ("random addition", edits.random_addition)),
    ]
    own: list[str] = []
    found: list[ReplyShares] = []
    for prompts, batch, names, (control, draw) in plan:
        for name in names:
            if name not in edits.fixed:
                continue
            said = generate_replies(handle, batch, edits.fixed[name], generation)
            on_replies(prompts, name, said)
            if name == "none" and batch is harmless:
                own = said
            rank = {"none": 0, "ablation": edits.rank}.get(name, 1)
            labels = [generation.judge(reply) for reply in said]
            found.append(shares_of(labels, intervention=name, prompts=prompts, rank=rank))
        if draw is not None:
            found.append(
                random_shares(
                    handle,
                    batch,
                    draw,
                    generation,
                    n_draws=settings.n_random,
                    intervention=control,
                    prompts=prompts,
                    rank=edits.rank if control == "random ablation" else 1,
                )
            )
    return own, found


def _first_tokens(
    handle: HookedModel,
    search: DirectionSearch,
    harmful: TokenBatch,
    harmless: TokenBatch,
    edits: Interventions,
    settings: DirectionSettings,
    generator: torch.Generator,
) -> tuple[dict[str, Estimate], Estimate]:
    ids = [token.token_id for token in search.refusal_tokens]
    metrics: dict[str, Estimate] = {}
    plain: Tensor | None = None
    kl: Estimate | None = None
    for prompts, batch in (("harmful held out", harmful), ("harmless held out", harmless)):
        weights = resample_weights(len(batch), settings.n_bootstrap, generator)
        for name, edit in edits.fixed.items():
            logits = last_logits(handle, batch, edit, settings.batch_rows)
            metrics[f"{name} on {prompts}"] = mean_estimate(refusal_metric(logits, ids), weights)
            if batch is harmless and name == "none":
                plain = logits
            if batch is harmless and name == "ablation":
                assert plain is not None  # `none` is the first of the fixed interventions
                kl = mean_estimate(kl_divergence(plain, logits), weights)
    assert kl is not None
    return metrics, kl


def _utility(
    handle: HookedModel,
    texts: EvaluationTexts,
    own: Sequence[str],
    edits: Interventions,
    settings: DirectionSettings,
    generator: torch.Generator,
) -> list[UtilityCost]:
    sets = _text_sets(handle, texts, own, settings)
    costs = []
    for name, rows in sets.items():
        plain = text_losses(handle, rows, batch_rows=settings.batch_rows)
        weights = resample_weights(len(rows), settings.n_bootstrap, generator)
        edited: dict[str, list[TextLosses]] = {
            intervention: [text_losses(handle, rows, edits.fixed[intervention], batch_rows=settings.batch_rows)]
            for intervention in ("ablation", "subtraction", "addition")
            if intervention in edits.fixed
        }
        edited["random ablation"] = [
            text_losses(handle, rows, edits.random_ablation(), batch_rows=settings.batch_rows)
            for _ in range(min(UTILITY_DRAWS, settings.n_random))
        ]
        none = Estimate(value=0.0, low=0.0, high=0.0, n=len(rows))
        costs.append(UtilityCost(intervention="none", texts=name, cross_entropy=plain.mean, increase=none))
        costs += [_cost(intervention, name, plain, losses, weights) for intervention, losses in edited.items()]
    return costs


def _text_sets(
    handle: HookedModel, texts: EvaluationTexts, own: Sequence[str], settings: DirectionSettings
) -> dict[str, list[TokenRow]]:
    answered = list(texts.answered)[: settings.n_evaluate]
    prompts, answers = [prompt for prompt, _ in answered], [answer for _, answer in answered]
    asked = list(texts.harmless)[: settings.n_evaluate]
    said = [(prompt, reply) for prompt, reply in zip(asked, own, strict=True) if reply.strip()]
    sets = {
        "documents": plain_rows(handle.tokenizer, list(texts.documents)[: settings.n_evaluate]),
        "reference answers": token_rows(
            handle.tokenizer, render_chat(handle.tokenizer, prompts, system=settings.system), answers
        ),
    }
    if said:
        rendered = render_chat(handle.tokenizer, [prompt for prompt, _ in said], system=settings.system)
        sets["own replies"] = token_rows(handle.tokenizer, rendered, [reply for _, reply in said])
    return sets


def _cost(
    intervention: str, name: str, plain: TextLosses, edited: Sequence[TextLosses], weights: Tensor
) -> UtilityCost:
    nats = torch.stack([losses.nats for losses in edited]).mean(0)
    total = float(plain.n_tokens.sum())
    # A ratio of sums: the texts' differences in nats, over the mean number of tokens of a text.
    scaled = (nats - plain.nats) * len(plain.nats) / total
    return UtilityCost(
        intervention=intervention,
        texts=name,
        cross_entropy=float(nats.sum()) / total,
        increase=mean_estimate(scaled, weights),
    )
