"""Candidate directions of a model and their scores: the part of a search before anything is generated.

1. Read the chat template: the tokens after the instruction are the positions.
2. Learn the first tokens of refusals, and keep harmful prompts that are refused and harmless ones that are answered.
3. Difference in means at every position and layer.
4. Score on validation prompts: induce for layers that the rule allows, bypass and KL for what induces refusal.
5. Select by the published rule; a paired bootstrap says whether the runner-up is inside the noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.means import Differences, TemplateFacts, differences, template_facts
from safe_sail.directions.projection import MIN_NORM
from safe_sail.directions.refusal_tokens import (
    first_token_probabilities,
    learn_refusal_tokens,
    named_refusal_tokens,
)
from safe_sail.directions.scoring import AblationScores, Candidate, CandidateScorer
from safe_sail.directions.selection import ScoreRow, Selection, SelectionRule, filter_reasons, select
from safe_sail.errors import EmptyConcept, NoDirection
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, rows_of
from safe_sail.records import DirectionCandidate, Estimate, RefusalToken
from safe_sail.settings import DirectionSettings


class DirectionPrompts(NamedTuple):
    """Instructions, without chat markup; the first ones are used where more are given than the settings ask for."""

    harmful_train: Sequence[str]
    harmless_train: Sequence[str]
    harmful_validation: Sequence[str]
    harmless_validation: Sequence[str]
    train_concepts: Sequence[str] | None = None
    """Concept of each harmful training prompt, for a subspace of one direction per concept; None without labels."""


class Prepared(NamedTuple):
    """Prompts as token batches, filtered, with what was learnt on the way."""

    template: TemplateFacts
    refusal_tokens: tuple[RefusalToken, ...]
    harmful_train: TokenBatch
    harmless_train: TokenBatch
    harmful_validation: TokenBatch
    harmless_validation: TokenBatch
    concepts: tuple[str, ...] | None
    """Of the harmful training prompts that were kept."""
    n_prompts: dict[str, int]


class CellScores(NamedTuple):
    """Scores of one cell, prompt by prompt; None where a filter made them needless."""

    candidate: Candidate
    massive_ratio: float
    induce: Float[Tensor, " harmless"] | None
    ablated: AblationScores | None


class Scored(NamedTuple):
    """The whole table, and what it took."""

    cells: tuple[CellScores, ...]
    """Positions from the far end, layers upwards."""
    n_launches: int
    n_launches_naive: int


def prepare(
    handle: HookedModel,
    prompts: DirectionPrompts,
    settings: DirectionSettings,
    *,
    refusal_texts: Sequence[str] | None = None,
) -> Prepared:
    """Token batches of the prompts, filtered by the refusal metric where the settings say so.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        RefusalTokensMissing: no first token tells refused prompts from answered ones, and none were named.
        EmptyConcept: a class has no prompt, or none that the filter left.
    """
    template = template_facts(handle, settings.system)
    given = {
        "harmful train": list(prompts.harmful_train)[: settings.n_train],
        "harmless train": list(prompts.harmless_train)[: settings.n_train],
        "harmful validation": list(prompts.harmful_validation)[: settings.n_validation],
        "harmless validation": list(prompts.harmless_validation)[: settings.n_validation],
    }
    for name, texts in given.items():
        if not texts:
            raise EmptyConcept(f"{name}: expected prompts, got none.")
    batches = {name: handle.chat_batch(texts, system=settings.system) for name, texts in given.items()}
    first = {name: first_token_probabilities(handle, batch, settings.batch_rows) for name, batch in batches.items()}
    p, q = first["harmful train"], first["harmless train"]
    if refusal_texts is None:
        tokens = learn_refusal_tokens(handle.tokenizer, p, q)
    else:
        tokens = named_refusal_tokens(handle.tokenizer, refusal_texts, p, q)
    counts: dict[str, int] = {}
    concepts = None if prompts.train_concepts is None else tuple(prompts.train_concepts)[: settings.n_train]
    for name, batch in batches.items():
        counts[f"{name} given"] = len(batch)
        if settings.filter_prompts:
            kept = _kept(first[name], tokens, refused=name.startswith("harmful"))
            if not kept:
                raise EmptyConcept(_nothing_left(name, len(batch), tokens))
            batches[name] = rows_of(batch, kept)
            if name == "harmful train" and concepts is not None:
                concepts = tuple(concepts[row] for row in kept)
        counts[name] = len(batches[name])
    return Prepared(
        template=template,
        refusal_tokens=tokens,
        harmful_train=batches["harmful train"],
        harmless_train=batches["harmless train"],
        harmful_validation=batches["harmful validation"],
        harmless_validation=batches["harmless validation"],
        concepts=concepts,
        n_prompts=counts,
    )


def _kept(first: Tensor, tokens: Sequence[RefusalToken], *, refused: bool) -> list[int]:
    # The refusal metric is above 0 exactly when the refusal tokens hold more than half of the probability.
    share = first.double()[:, [token.token_id for token in tokens]].sum(-1)
    chosen: Tensor = share > 0.5 if refused else share < 0.5
    rows: list[int] = chosen.nonzero()[:, 0].tolist()
    return rows


def _nothing_left(name: str, n: int, tokens: Sequence[RefusalToken]) -> str:
    wanted = "refuses" if name.startswith("harmful") else "answers"
    words = ", ".join(repr(token.text) for token in tokens)
    return (
        f"{name}: none of {n} prompts is left, since the model {wanted} none of them by the first tokens {words}. Use "
        f"an aligned model, name other refusal tokens, or turn `filter_prompts` off."
    )


def find_differences(
    handle: HookedModel, prepared: Prepared, settings: DirectionSettings, estimator: str
) -> Differences:
    """Candidates of every position and layer by one estimator."""
    return differences(
        handle,
        prepared.harmful_train,
        prepared.harmless_train,
        n_positions=prepared.template.n_positions,
        batch_rows=settings.batch_rows,
        estimator=estimator,
        winsor_quantile=settings.winsor_quantile,
    )


def rule_of(settings: DirectionSettings) -> SelectionRule:
    """The selection rule that the settings describe."""
    return SelectionRule(settings.induce_above, settings.kl_below, settings.layer_share)


def score_cells(handle: HookedModel, prepared: Prepared, found: Differences, settings: DirectionSettings) -> Scored:
    """Scores of every cell that the rule does not rule out beforehand; of every cell with `score_all`."""
    n_positions, n_layers, _ = found.vectors.shape
    late = rule_of(settings).first_late_layer(n_layers)
    cells = [
        Candidate(place - n_positions, layer, found.vectors[place, layer])
        for place in range(n_positions)
        for layer in range(n_layers)
    ]
    usable = [cell for cell in cells if float(cell.vector.norm()) > MIN_NORM and bool(cell.vector.isfinite().all())]
    tried = [cell for cell in usable if settings.score_all or cell.layer < late]
    scorer = CandidateScorer(
        handle,
        prepared.harmful_validation,
        prepared.harmless_validation,
        layers={cell.layer for cell in tried},
        refusal_ids=[token.token_id for token in prepared.refusal_tokens],
        batch_rows=settings.pack_rows,
    )
    induced = dict(zip(((cell.position, cell.layer) for cell in tried), scorer.induce(tried), strict=True))
    worth = [
        cell
        for cell in tried
        if settings.score_all or float(induced[cell.position, cell.layer].mean()) > settings.induce_above
    ]
    ablated = dict(zip(((cell.position, cell.layer) for cell in worth), scorer.ablate(worth), strict=True))
    rows = [len(prepared.harmful_validation), len(prepared.harmless_validation), len(prepared.harmless_validation)]
    naive = len(cells) * sum(-(-n // settings.batch_rows) for n in rows)
    return Scored(
        tuple(
            CellScores(
                cell,
                float(found.massive_ratio[cell.position, cell.layer]),
                induced.get((cell.position, cell.layer)),
                ablated.get((cell.position, cell.layer)),
            )
            for cell in cells
        ),
        scorer.n_launches,
        naive,
    )


def score_rows(scored: Scored) -> list[ScoreRow]:
    """The table that the selection reads; a cell without a direction is not in it."""
    return [
        ScoreRow(
            cell.candidate.position,
            cell.candidate.layer,
            None if cell.ablated is None else float(cell.ablated.bypass.mean()),
            None if cell.induce is None else float(cell.induce.mean()),
            None if cell.ablated is None else float(cell.ablated.kl.mean()),
        )
        for cell in scored.cells
        if float(cell.candidate.vector.norm()) > MIN_NORM
    ]


def select_cell(scored: Scored, n_layers: int, settings: DirectionSettings) -> Selection | NoDirection:
    """The selection, or the error that says which filter took every candidate."""
    try:
        return select(score_rows(scored), n_layers, rule_of(settings))
    except NoDirection as nothing:
        return nothing


def table_of(
    scored: Scored, n_layers: int, settings: DirectionSettings, generator: torch.Generator
) -> tuple[DirectionCandidate, ...]:
    """The whole table with bootstrap intervals, resampled alike in every cell."""
    resampled: dict[int, Tensor] = {}

    def estimate(values: Tensor | None) -> Estimate | None:
        if values is None or not bool(values.isfinite().all()):
            return None
        if len(values) not in resampled:
            resampled[len(values)] = resample_weights(len(values), settings.n_bootstrap, generator)
        return mean_estimate(values, resampled[len(values)])

    rows = {(row.position, row.layer): row for row in score_rows(scored)}
    table = []
    for cell in scored.cells:
        position, layer, vector = cell.candidate
        row = rows.get((position, layer))
        table.append(
            DirectionCandidate(
                position=position,
                layer=layer,
                norm=float(vector.norm()),
                massive_ratio=cell.massive_ratio,
                bypass=estimate(cell.ablated and cell.ablated.bypass),
                induce=estimate(cell.induce),
                kl=estimate(cell.ablated and cell.ablated.kl),
                reasons=("no difference",) if row is None else filter_reasons(row, n_layers, rule_of(settings)),
            )
        )
    return tuple(table)


def lead_of(
    scored: Scored, selection: Selection, settings: DirectionSettings, generator: torch.Generator
) -> Estimate | None:
    """Bypass of the runner-up minus that of the winner, paired over prompts; None without a runner-up."""
    if len(selection.order) < 2:
        return None
    scores = []
    for row in selection.order[:2]:
        cell = cell_at(scored, row.position, row.layer)
        assert cell.ablated is not None
        scores.append(cell.ablated.bypass)
    weights = resample_weights(len(scores[0]), settings.n_bootstrap, generator)
    return mean_estimate(scores[1] - scores[0], weights)


def cell_at(scored: Scored, position: int, layer: int) -> CellScores:
    """The cell of a position and layer."""
    return next(cell for cell in scored.cells if (cell.candidate.position, cell.candidate.layer) == (position, layer))
