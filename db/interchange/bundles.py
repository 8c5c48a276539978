"""Whole features with what they refer to, out of one database and into another; what is there already is left alone.

1. `references` names what an SAE's features refer to: runs, the model, concepts.
2. `BundleKeeper` keeps these, SAEs and features, and counts what was new, replaced and there already. Every record
   stays under the run that found it; models, concepts and SAEs stand under the import's own run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import select, union
from sqlalchemy.orm import Session

from db import store, tables
from db.lookup import find_sae
from db.store import FeatureBundle, Kept
from db.store.saving import FeatureWriter
from safe_sail.errors import BadInput, NotFound
from safe_sail.records import Concept, ConceptScore, Context, Explanation, ModelRef, RunInfo, SaeRef, TopContexts

# --------------------------------------------------------------------------------------------- 1. out


class References(NamedTuple):
    """What features refer to by name."""

    runs: Sequence[RunInfo]
    """By id."""
    models: Sequence[ModelRef]
    concepts: Sequence[Concept]
    """By domain, category and name."""


def references(session: Session, sae: str) -> References:
    """What the SAE's features refer to, and their SAE's model.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = find_sae(session, sae)
    judged, said = tables.ExplanationScoreRow, tables.ExplanationRow
    of_sae = [
        select(table.run_id).where(table.sae_key == row.sae_key)
        for table in (tables.ContextsRow, tables.ConceptScoreRow, said)
    ]
    of_scores = select(judged.run_id).join(said, said.explanation_key == judged.explanation_key)
    runs = session.scalars(union(*of_sae, of_scores.where(said.sae_key == row.sae_key)))
    scored = tables.ConceptScoreRow
    names = set(session.scalars(select(scored.concept).where(scored.sae_key == row.sae_key).distinct()))
    return References(
        runs=[store.load_run(session, run_id) for run_id in sorted(runs)],
        models=[] if row.model_id is None else [store.load_model(session, row.model_id)],
        concepts=[concept for concept in store.list_concepts(session) if concept.name in names],
    )


# --------------------------------------------------------------------------------------------- 2. in


@dataclass(slots=True)
class Tally:
    """Records of one kind."""

    new: int = 0
    replaced: int = 0
    unchanged: int = 0

    def add(self, known: object, given: object) -> bool:
        """Counts the record and says whether it is to be written; `known` is None for a new one."""
        self.new += known is None
        self.unchanged += known == given
        self.replaced += known is not None and known != given
        return known != given


KINDS = ("runs", "models", "concepts", "saes", "features", "contexts", "concept_scores", "explanations", "scores")


class BundleKeeper:
    """Keeps records inside the caller's transaction and counts them by kind.

    `shown` is what became of a context's half characters in the source: a context that differs by them alone is left as
    it is, since the database may know more.
    """

    def __init__(self, session: Session, run_id: str, shown: Callable[[Context], Context]) -> None:
        self.counts = {kind: Tally() for kind in KINDS}
        self._session, self._run_id, self._shown = session, run_id, shown
        self._runs: set[str] = set()
        self._saes: dict[str, SaeRef] = {}
        self._concepts: dict[str, Concept] | None = None

    def keep_run(self, run: RunInfo) -> None:
        """Keeps a run that the database does not know; a known one stays as it is."""
        is_known = self._session.get(tables.RunRow, run.run_id) is not None
        if self.counts["runs"].add(run if is_known else None, run):
            store.save_run(self._session, run)

    def keep_model(self, model: ModelRef) -> None:
        """Keeps a model.

        Raises:
            BadInput: the database knows it otherwise.
        """
        is_known = self._session.get(tables.ModelRow, model.model_id) is not None
        known = store.load_model(self._session, model.model_id) if is_known else None
        _require_same(f"model `{model.model_id}`", known, model)
        if self.counts["models"].add(known, model):
            store.save_model(self._session, model, run_id=self._run_id)

    def keep_concept(self, concept: Concept) -> None:
        """Keeps a concept.

        Raises:
            BadInput: the database has it in another place.
        """
        if self._concepts is None:
            self._concepts = {one.name: one for one in store.list_concepts(self._session)}
        known = self._concepts.get(concept.name)
        _require_same(f"concept `{concept.name}`", known, concept)
        if self.counts["concepts"].add(known, concept):
            store.save_concepts(self._session, [concept], run_id=self._run_id)
            self._concepts[concept.name] = concept

    def keep_sae(self, sae: SaeRef) -> None:
        """Keeps an SAE; its model must be known.

        Raises:
            BadInput: the database knows it otherwise.
            NotFound: the model is not kept.
        """
        if self._saes.get(sae.slug) == sae:
            return
        row = tables.SaeRow
        is_known = self._session.scalar(select(row.sae_key).where(row.slug == sae.slug)) is not None
        known = store.load_sae(self._session, sae.slug) if is_known else None
        _require_same(f"SAE `{sae.slug}`", known, sae)
        if self.counts["saes"].add(known, sae):
            store.save_sae(self._session, sae, run_id=self._run_id)
        self._saes[sae.slug] = sae

    def keep_feature(self, given: FeatureBundle) -> None:
        """Keeps a feature of a known SAE; what the bundle does not have stays.

        Raises:
            BadInput: a record cannot be kept.
            NotFound: the feature lies beyond the SAE's width, or a run or a concept is not kept.
        """
        known = store.load_feature(self._session, given.feature)
        self._touch(given)
        self._keep_contexts(known.top_contexts, given.top_contexts)
        scores = {kept.record.concept: kept for kept in known.concept_scores}
        for score in given.concept_scores:
            self._keep_concept_score(scores.get(score.record.concept), score)
        said = {_name(one.explanation): one for one in known.explanations}
        for one in given.explanations:
            before = said.get(_name(one.explanation))
            is_new = self.counts["explanations"].add(before and before.explanation, one.explanation)
            if is_new:
                self._require_run(one.explanation.run_id)
                store.save_explanations(self._session, [one.explanation.record], run_id=one.explanation.run_id)
            same_text = before is not None and before.explanation.record.text == one.explanation.record.text
            judged = {kept.record.method: kept for kept in before.scores} if before and same_text else {}
            for score_of in one.scores:
                if self.counts["scores"].add(judged.get(score_of.record.method), score_of):
                    self._require_run(score_of.run_id)
                    store.save_explanation_scores(self._session, [score_of.record], run_id=score_of.run_id)

    def _touch(self, given: FeatureBundle) -> None:
        writer = FeatureWriter(self._session, self._run_id)
        key = (writer.key_of(given.feature)["sae_key"], given.feature.index)
        is_known = self._session.get(tables.FeatureRow, key) is not None
        if self.counts["features"].add(given.feature if is_known else None, given.feature):
            writer.touch([given.feature])

    def _keep_contexts(self, known: Kept[TopContexts] | None, given: Kept[TopContexts] | None) -> None:
        if given is None:
            return
        if known is not None:
            contexts = tuple(self._shown(context) for context in known.record.contexts)
            known = Kept(replace(known.record, contexts=contexts), known.run_id)
        if self.counts["contexts"].add(known, given):
            self._require_run(given.run_id)
            store.save_top_contexts(self._session, [given.record], run_id=given.run_id)

    def _keep_concept_score(self, known: Kept[ConceptScore] | None, given: Kept[ConceptScore]) -> None:
        if self.counts["concept_scores"].add(known, given):
            self._require_run(given.run_id)
            store.save_concept_scores(self._session, [given.record], run_id=given.run_id)

    def _require_run(self, run_id: str) -> None:
        if run_id not in self._runs:
            try:
                store.load_run(self._session, run_id)
            except NotFound as error:
                raise NotFound(f"run `{run_id}` is neither in the database nor in a line before this one.") from error
            self._runs.add(run_id)


def _require_same(name: str, known: object, given: object) -> None:
    if known is not None and known != given:
        raise BadInput(f"{name}: the database knows {known}; got {given}.")


def _name(said: Kept[Explanation]) -> tuple[str, str]:
    return said.record.explainer, said.record.prompt_version
