"""`save_*`: records into rows, inside the caller's transaction.

Rule of keys: saving the same key again replaces what was there, whole, and the row names the newer run; the last save
wins. A command can so be run again at any time. Two consequences are spelled out here: an explanation whose text
changes loses its scores, since they judged another text; and an SAE cannot change its site or width under its slug,
since its features would then mean something else.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae
from db.packing import is_plain_text
from db.store import rows
from db.store.feature_rows import refresh_listing, touch
from db.store.upserts import upsert
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import (
    Concept,
    ConceptScore,
    Explanation,
    ExplanationScore,
    FeatureId,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)

T = TypeVar("T")

_CHUNK = 256  # records turned into rows at a time: memory stays at some megabytes however long the iterable is

# --------------------------------------------------------------------------------------------- runs, models, SAEs


def save_run(session: Session, run: RunInfo) -> None:
    """Keeps a run; everything else is saved under a run that is kept.

    Raises:
        BadRecord: the settings hold something that JSON cannot, or a value cannot be kept.
    """
    for name, values in (("settings", run.settings), ("versions", run.versions)):
        try:
            json.dumps(dict(values), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadRecord(f"{name} of run {run.run_id} must be JSON values: {error}.") from error
    upsert(session, tables.RunRow, [rows.run_columns(run)], key=("run_id",))


def finish_run(session: Session, run_id: str, finished: datetime) -> None:
    """Writes when a run ended.

    Raises:
        NotFound: no such run is kept.
    """
    require_run(session, run_id)
    session.execute(update(tables.RunRow).where(tables.RunRow.run_id == run_id).values(finished=finished))


def save_model(session: Session, model: ModelRef, *, run_id: str) -> None:
    """Keeps a model.

    Raises:
        NotFound: no such run is kept.
    """
    require_run(session, run_id)
    upsert(session, tables.ModelRow, [rows.model_columns(model) | {"run_id": run_id}], key=("model_id",))


def save_sae(session: Session, sae: SaeRef, *, run_id: str) -> None:
    """Keeps an SAE; its model must be kept before, unless the SAE names none.

    Raises:
        NotFound: the run or the model is not kept.
        BadRecord: the slug already names an SAE of another site or width.
    """
    require_run(session, run_id)
    columns = rows.keepable(rows.sae_columns(sae), key=("slug",))
    if sae.model_id is not None and session.get(tables.ModelRow, sae.model_id) is None:
        raise NotFound(f"model `{sae.model_id}` of SAE {sae.slug} is not in the database; save the model first.")
    known = session.scalars(select(tables.SaeRow).where(tables.SaeRow.slug == sae.slug)).one_or_none()
    if known is not None:
        session.refresh(known)
        if (known.site, known.d_in, known.width) != (str(sae.site), sae.d_in, sae.width):
            raise BadRecord(
                f"{sae.slug} already names an SAE at {known.site}, {known.d_in} -> {known.width}; this one is at "
                f"{sae.site}, {sae.d_in} -> {sae.width}. Give it another slug."
            )
    upsert(session, tables.SaeRow, [columns | {"run_id": run_id}], key=("slug",))


def save_sae_facts(session: Session, facts: SaeFacts, *, run_id: str) -> None:
    """Keeps how well an SAE reconstructs.

    Raises:
        NotFound: the run or the SAE is not kept.
        BadRecord: a fact is not finite.
    """
    require_run(session, run_id)
    columns = rows.facts_columns(facts) | {"sae_key": find_sae(session, facts.sae).sae_key, "run_id": run_id}
    upsert(session, tables.SaeFactsRow, [columns], key=("sae_key",))


# --------------------------------------------------------------------------------------------- concepts and scores


def save_concepts(session: Session, concepts: Iterable[Concept], *, run_id: str) -> None:
    """Keeps concepts; scores refer to them by name.

    Raises:
        NotFound: no such run is kept.
    """
    require_run(session, run_id)
    columns = [rows.concept_columns(concept) | {"run_id": run_id} for concept in concepts]
    upsert(session, tables.ConceptRow, columns, key=("name",))


def save_sae_scores(session: Session, scores: Iterable[SaeScore], *, run_id: str) -> None:
    """Keeps how specifically SAEs carry concepts.

    Raises:
        NotFound: the run, an SAE or a concept is not kept.
        BadRecord: a best feature belongs to another SAE or lies beyond its width.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(scores):
        writer.require_concepts({score.concept for score in chunk})
        columns = [rows.sae_score_columns(score) | writer.sae_of(score.best_feature) for score in chunk]
        upsert(session, tables.SaeScoreRow, columns, key=("sae_key", "concept"))


def save_concept_scores(session: Session, scores: Iterable[ConceptScore], *, run_id: str) -> None:
    """Keeps how well features tell concepts; takes thousands, also from a generator.

    Raises:
        NotFound: the run, an SAE or a concept is not kept.
        BadRecord: a feature lies beyond its SAE's width.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(scores):
        writer.require_concepts({score.concept for score in chunk})
        writer.touch([score.feature for score in chunk])
        columns = [rows.concept_score_columns(score) | writer.key_of(score.feature) for score in chunk]
        upsert(session, tables.ConceptScoreRow, columns, key=("sae_key", "feature_index", "concept"))
        refresh_listing(session, columns)


# --------------------------------------------------------------------------------------------- contexts, explanations


def save_top_contexts(session: Session, found: Iterable[TopContexts], *, run_id: str) -> None:
    """Keeps what features fire on; takes thousands, also from a generator. Activations are kept as float32.

    A sample of the same feature's contexts goes: it was of the collection that is replaced.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a token id beyond 32 bits.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    key = ("sae_key", "feature_index")
    for chunk in chunks(found):
        keys = [writer.key_of(one.feature) for one in chunk]
        light = [rows.feature_columns(one) | key_of_one for one, key_of_one in zip(chunk, keys, strict=True)]
        heavy = [rows.contexts_columns(one) | key_of_one for one, key_of_one in zip(chunk, keys, strict=True)]
        upsert(session, tables.FeatureRow, light, key=key)
        upsert(session, tables.ContextsRow, heavy, key=key)
        sample = tables.ContextSampleRow
        of_chunk = [(one["sae_key"], one["feature_index"]) for one in keys]
        session.execute(delete(sample).where(tuple_(sample.sae_key, sample.feature_index).in_(of_chunk)))
        refresh_listing(session, keys)


def save_explanations(session: Session, explanations: Iterable[Explanation], *, run_id: str) -> None:
    """Keeps explanations; where the text of a key changes, the scores of the old text are deleted.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a text holds NUL or half a character.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    key = ("sae_key", "feature_index", "explainer", "prompt_version")
    for chunk in chunks(explanations):
        writer.touch([explanation.feature for explanation in chunk])
        columns = [rows.explanation_columns(one) | writer.key_of(one.feature) for one in chunk]
        texts = {tuple(row[name] for name in key): row["text"] for row in columns}
        changed = [
            known.explanation_key for name, known in _known_explanations(session, columns).items()
            if name in texts and known.text != texts[name]
        ]  # fmt: skip
        upsert(session, tables.ExplanationRow, columns, key=key)
        scores = tables.ExplanationScoreRow
        session.execute(delete(scores).where(scores.explanation_key.in_(changed)))
        refresh_listing(session, columns)


def save_explanation_scores(session: Session, scores: Iterable[ExplanationScore], *, run_id: str) -> None:
    """Keeps how well explanations predict; each explanation must be kept before.

    Raises:
        NotFound: the run, an SAE or an explanation is not kept.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(scores):
        keys = [writer.key_of(score.feature) for score in chunk]
        known = _known_explanations(session, keys)
        columns = []
        for score, key in zip(chunk, keys, strict=True):
            name = (key["sae_key"], key["feature_index"], score.explainer, score.prompt_version)
            if name not in known:
                raise NotFound(
                    f"{score.feature} has no explanation by `{score.explainer}`, version `{score.prompt_version}`; "
                    f"save the explanation before its scores."
                )
            columns.append(
                rows.explanation_score_columns(score)
                | {"explanation_key": known[name].explanation_key, "run_id": run_id}
            )
        upsert(session, tables.ExplanationScoreRow, columns, key=("explanation_key", "method"))
        refresh_listing(session, keys)


# --------------------------------------------------------------------------------------------- shared steps


class FeatureWriter:
    """Numbers of the SAEs that one call writes to; each SAE is looked up once."""

    def __init__(self, session: Session, run_id: str) -> None:
        self._session = session
        self._run_id = run_id
        self._saes: dict[str, tuple[int, int]] = {}
        self._concepts: set[str] = set()

    def sae_of(self, feature: FeatureId) -> rows.Columns:
        """Number of the feature's SAE, and the run."""
        if feature.sae not in self._saes:
            row = find_sae(self._session, feature.sae)
            self._saes[feature.sae] = (row.sae_key, row.width)
        sae_key, width = self._saes[feature.sae]
        if feature.index >= width:
            raise BadRecord(f"{feature}: the features of {feature.sae} are 0 to {width - 1}.")
        return {"sae_key": sae_key, "run_id": self._run_id}

    def key_of(self, feature: FeatureId) -> rows.Columns:
        """Key of the feature, and the run."""
        return self.sae_of(feature) | {"feature_index": feature.index}

    def touch(self, features: Sequence[FeatureId]) -> None:
        """Makes sure that each feature has a row, without changing one that is there."""
        touch(self._session, [self.key_of(feature) for feature in dict.fromkeys(features)])

    def require_concepts(self, names: set[str]) -> None:
        """Refuses concepts that are not kept."""
        if not self._concepts:
            self._concepts = set(self._session.scalars(select(tables.ConceptRow.name)))
        if unknown := sorted(names - self._concepts):
            raise NotFound(f"concepts {unknown} are not in the database; save the concepts first.")


def _known_explanations(session: Session, keys: Sequence[rows.Columns]) -> dict[tuple[Any, ...], tables.ExplanationRow]:
    row = tables.ExplanationRow
    features = {(key["sae_key"], key["feature_index"]) for key in keys}
    found = session.scalars(select(row).where(tuple_(row.sae_key, row.feature_index).in_(features)))
    return {(one.sae_key, one.feature_index, one.explainer, one.prompt_version): one for one in found}


def require_run(session: Session, run_id: str) -> None:
    """Refuses a run that is not kept.

    Raises:
        NotFound: no such run is kept.
    """
    if not is_plain_text(run_id) or session.get(tables.RunRow, run_id) is None:
        raise NotFound(f"run `{run_id}` is not in the database; save the run first.")


def chunks(records: Iterable[T]) -> Iterator[list[T]]:
    """The records in portions, so that memory stays bounded."""
    rest = iter(records)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
