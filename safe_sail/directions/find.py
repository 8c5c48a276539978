"""From prompts to a confirmed refusal direction, or to the reasons why there is none.

1. Prepare prompts and refusal tokens (`candidates.py`).
2. For each estimator: candidates, scores, the published selection.
3. Confirm by generation on validation prompts, in the order of the rule: first-token scores and replies may disagree.
   The first estimator with a confirmed candidate ends the search.
4. Where none has one, subspaces are tried rank by rank (`subspace.py`).
5. Add the direction at growing multiples until harmless prompts are refused in whole sentences.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.candidates import (
    DirectionPrompts,
    Prepared,
    Scored,
    cell_at,
    find_differences,
    lead_of,
    prepare,
    rule_of,
    score_cells,
    select_cell,
    table_of,
)
from safe_sail.directions.diff_in_means import MASSIVE_RATIO
from safe_sail.directions.interventions import ablation, addition
from safe_sail.directions.projection import orthonormal_basis
from safe_sail.directions.replies import Generation, reply_shares
from safe_sail.directions.selection import Selection
from safe_sail.directions.subspace import Cell, concept_basis, passes, rank_effect, repeated_basis
from safe_sail.errors import NoDirection
from safe_sail.model.handle import HookedModel
from safe_sail.records import (
    Direction,
    DirectionSearch,
    DirectionSelection,
    DirectionTrial,
    RankEffect,
    ReplyShares,
)
from safe_sail.settings import DirectionSettings
from safe_sail.sites import Site, SiteKind

Progress = Callable[[str], None]

COEFFICIENTS = (1.0, 1.25, 1.5, 2.0, 3.0, 0.75, 0.5)
"""Multiples of the added direction, in the order they are tried: the paper's 1 first, then larger, then smaller."""
N_ADDED = 4
"""Candidates tried for addition at most: the ablated one first, then by their induce score."""


class Attempt(NamedTuple):
    """One estimator's selection with the tensors behind it."""

    record: DirectionSelection
    scored: Scored
    cell: Cell | None
    """The confirmed cell."""


class Added(NamedTuple):
    """The direction that is added, how much of it, and what it does on validation prompts."""

    cell: Cell
    vector: Float[Tensor, " d_model"]
    coefficient: float
    shares: ReplyShares


class Spanned(NamedTuple):
    """What the search of subspaces ended with."""

    curves: dict[str, tuple[RankEffect, ...]]
    way: str
    cell: Cell
    basis: Float[Tensor, "rank d_model"] | None
    """None where no rank of any way passed."""


def silent(message: str) -> None:
    """No progress report."""


def find_direction(
    handle: HookedModel,
    prompts: DirectionPrompts,
    settings: DirectionSettings,
    *,
    slug: str,
    generator: torch.Generator,
    refusal_texts: Sequence[str] | None = None,
    progress: Progress = silent,
) -> DirectionSearch:
    """Search record: the confirmed direction or subspace with the whole way to it, or why there is none.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        RefusalTokensMissing: no first token tells refused prompts from answered ones, and none were named.
        EmptyConcept: a class has no prompt, or none that the filter left.
    Source: Arditi et al. 2024, sections 2.3-2.4 and appendix C, arXiv:2406.11717; confirmation by generation, further
    estimators and subspaces are ours.
    """
    progress("preparing prompts")
    prepared = prepare(handle, prompts, settings, refusal_texts=refusal_texts)
    attempts: list[Attempt] = []
    for estimator in settings.estimators:
        progress(f"scoring {estimator} candidates")
        attempts.append(_attempt(handle, prepared, settings, estimator, generator))
        if attempts[-1].cell is not None:
            break
    reasons = [attempt.record.reason for attempt in attempts if attempt.record.reason]
    last, spanned = attempts[-1], None
    direction: Direction | None = None
    if last.cell is not None:
        vector = cell_at(last.scored, *last.cell).candidate.vector
        direction = _direction(slug, handle, last.cell, last.record.estimator, vector[None])
    else:
        progress("trying subspaces")
        spanned = _subspaces(handle, prepared, last.scored, settings, generator)
        reasons += _curve_reasons(spanned, settings)
        if spanned.basis is not None:
            direction = _direction(slug, handle, spanned.cell, spanned.way, spanned.basis)
    progress("adding the direction")
    added = _added(handle, prepared, last, settings)
    single = spanned is None
    return DirectionSearch(
        slug=slug,
        model_id=handle.model_id,
        outcome="none" if direction is None else "single" if single else "subspace",
        direction=direction,
        added=added and _direction(f"{slug}.added", handle, added.cell, last.record.estimator, added.vector[None]),
        coefficient=1.0 if added is None else added.coefficient,
        induced=None if added is None else added.shares,
        reasons=tuple(reasons),
        notes=_notes(prepared, attempts, prompts, added, settings),
        prompt_prefix=prepared.template.prefix,
        post_instruction=prepared.template.suffix,
        refusal_tokens=prepared.refusal_tokens,
        n_prompts=prepared.n_prompts,
        selections=tuple(attempt.record for attempt in attempts),
        curves={} if spanned is None else spanned.curves,
    )


def _direction(slug: str, handle: HookedModel, cell: Cell, estimator: str, rows: Tensor) -> Direction:
    return Direction(
        slug=slug,
        model_id=handle.model_id,
        site=Site(SiteKind.RESID_PRE, cell.layer),
        position=cell.position,
        estimator=estimator,
        vectors=tuple(tuple(row) for row in rows.double().tolist()),
    )


def _attempt(
    handle: HookedModel,
    prepared: Prepared,
    settings: DirectionSettings,
    estimator: str,
    generator: torch.Generator,
) -> Attempt:
    n_layers = handle.dims.n_layers
    scored = score_cells(handle, prepared, find_differences(handle, prepared, settings, estimator), settings)
    selection = select_cell(scored, n_layers, settings)
    trials: list[DirectionTrial] = []
    lead = None
    if isinstance(selection, Selection):
        lead = lead_of(scored, selection, settings, generator)
        for row in selection.order[: settings.n_confirm]:
            trials.append(_trial(handle, prepared, scored, Cell(row.position, row.layer), settings))
            if trials[-1].passed:
                break
    confirmed = next((Cell(trial.position, trial.layer) for trial in trials if trial.passed), None)
    record = DirectionSelection(
        estimator=estimator,
        candidates=table_of(scored, n_layers, settings, generator),
        winner=(selection.winner.position, selection.winner.layer) if isinstance(selection, Selection) else None,
        lead=lead,
        trials=tuple(trials),
        confirmed=None if confirmed is None else (confirmed.position, confirmed.layer),
        reason="" if confirmed is not None else f"{estimator}: {_reason(selection, trials)}",
        n_launches=scored.n_launches,
        n_launches_naive=scored.n_launches_naive,
    )
    return Attempt(record, scored, confirmed)


def _reason(selection: Selection | NoDirection, trials: Sequence[DirectionTrial]) -> str:
    if isinstance(selection, NoDirection):
        return str(selection)
    best = min(trials, key=lambda trial: trial.shares.refusal.value)
    return (
        f"{len(selection.order)} candidates pass the filters, but replies still refuse: of {len(trials)} tried the "
        f"best (position {best.position}, layer {best.layer}) leaves {best.shares.refusal.value:.3f} refusals and "
        f"{best.shares.degenerate.value:.3f} broken replies of n={best.shares.n_prompts}."
    )


def _trial(
    handle: HookedModel, prepared: Prepared, scored: Scored, cell: Cell, settings: DirectionSettings
) -> DirectionTrial:
    vector = cell_at(scored, *cell).candidate.vector
    shares = reply_shares(
        handle,
        prepared.harmful_validation,
        ablation(handle, orthonormal_basis(vector[None])),
        Generation(settings.max_new_tokens, settings.batch_rows),
        intervention="ablation",
        prompts="harmful validation",
        rank=1,
    )
    passed = shares.refusal.value <= settings.max_refusal_left and shares.degenerate.value <= settings.max_degenerate
    return DirectionTrial(position=cell.position, layer=cell.layer, shares=shares, passed=passed)


def _by_induce(scored: Scored) -> list[Cell]:
    found = [
        (float(cell.induce.mean()), Cell(cell.candidate.position, cell.candidate.layer))
        for cell in scored.cells
        if cell.induce is not None
    ]
    return [cell for _, cell in sorted(found, key=lambda pair: (-pair[0], pair[1]))]


def _subspaces(
    handle: HookedModel, prepared: Prepared, scored: Scored, settings: DirectionSettings, generator: torch.Generator
) -> Spanned:
    curves: dict[str, tuple[RankEffect, ...]] = {}
    cell = next(iter(_by_induce(scored)), Cell(-1, 1))
    basis = concept_basis(handle, prepared, cell, settings)
    if basis is not None:
        effects: list[RankEffect] = []
        for rank in range(1, len(basis) + 1):
            effects.append(rank_effect(handle, prepared, basis[:rank], settings, generator))
            if passes(effects[-1], settings):
                return Spanned({"concepts": tuple(effects)}, "concepts", cell, basis[:rank])
        curves["concepts"] = tuple(effects)
    effects = []
    for where, rows in repeated_basis(handle, prepared, settings, rule_of(settings)):
        effects.append(rank_effect(handle, prepared, rows, settings, generator))
        if passes(effects[-1], settings):
            return Spanned(curves | {"repeated": tuple(effects)}, "repeated", where, rows)
    return Spanned(curves | {"repeated": tuple(effects)}, "repeated", cell, None)


def _curve_reasons(spanned: Spanned, settings: DirectionSettings) -> list[str]:
    reasons = []
    for way, effects in spanned.curves.items():
        if not effects or (way == spanned.way and spanned.basis is not None):
            continue
        best = min(effects, key=lambda effect: (effect.shares.refusal.value, effect.rank))
        reasons.append(
            f"{way}: no rank up to {effects[-1].rank} leaves at most {settings.max_refusal_left:g} refusals with KL "
            f"below {settings.kl_below:g}; rank {best.rank} leaves {best.shares.refusal.value:.3f} with KL "
            f"{best.kl.value:.3f}."
        )
    return reasons


def _added(handle: HookedModel, prepared: Prepared, attempt: Attempt, settings: DirectionSettings) -> Added | None:
    cells = [] if attempt.cell is None else [attempt.cell]
    cells += [cell for cell in _by_induce(attempt.scored) if cell not in cells]
    best: Added | None = None
    for cell in cells[:N_ADDED]:
        vector = cell_at(attempt.scored, *cell).candidate.vector
        for coefficient in COEFFICIENTS:
            shares = reply_shares(
                handle,
                prepared.harmless_validation,
                addition(cell.layer, vector, coefficient),
                Generation(settings.max_new_tokens, settings.batch_rows),
                intervention="addition",
                prompts="harmless validation",
                rank=1,
            )
            if best is None or shares.refusal.value > best.shares.refusal.value:
                best = Added(cell, vector, coefficient, shares)
            if shares.refusal.value >= settings.min_refusal_induced:
                return best
    return best


def _notes(
    prepared: Prepared,
    attempts: Sequence[Attempt],
    prompts: DirectionPrompts,
    added: Added | None,
    settings: DirectionSettings,
) -> tuple[str, ...]:
    notes = list(prepared.template.notes)
    if len(set(prompts.harmful_train) & set(prompts.harmful_validation)):
        notes.append("Some validation prompts are training prompts: the scores flatter the candidates.")
    for name, n in prepared.n_prompts.items():
        given = prepared.n_prompts.get(f"{name} given", n)
        if n * 2 < given:
            notes.append(
                f"{name}: only {n} of {given} prompts are left by the refusal metric, so the refusal tokens may miss "
                f"many ways to refuse; what is confirmed on so few may not hold on others."
            )
    last = attempts[-1].record
    ratio = max((cell.massive_ratio for cell in last.candidates), default=0.0)
    if ratio > MASSIVE_RATIO:
        notes.append(
            f"One coordinate varies {ratio:.2f} sqrt(d_model) times as much as the median one (warning above "
            f"{MASSIVE_RATIO}): prefer the winsorised or the standardised estimator."
        )
    if last.lead is not None and last.lead_is_noise:
        notes.append(
            f"The runner-up is inside the noise: its bypass score is {last.lead.value:.2f} above the winner's, 95 % "
            f"interval [{last.lead.low:.2f}, {last.lead.high:.2f}] over n={last.lead.n} prompts."
        )
    if last.confirmed is not None and last.confirmed != last.winner:
        notes.append(f"The rule's winner {last.winner} still refuses; {last.confirmed} is the first that passed.")
    if added is not None and added.shares.refusal.value < settings.min_refusal_induced:
        notes.append(
            f"No addition made {settings.min_refusal_induced:g} of harmless replies refusals in whole sentences; the "
            f"best made {added.shares.refusal.value:.3f}."
        )
    return tuple(notes)
