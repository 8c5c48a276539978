"""What a run of the demo kept, read back from the database: for its report, and so that nothing is done twice."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import store
from db.engine import reading
from safe_sail.features import lexical
from safe_sail.features.contexts import Collected
from safe_sail.organism.concept_data import organism_concepts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import (
    ConceptScore,
    Context,
    Explanation,
    ExplanationScore,
    FeatureId,
    RunInfo,
    SaeFacts,
    SaeScore,
)


class FeatureResult(NamedTuple):
    """One feature that the demo explained, or could not explain."""

    explanation: Explanation | None
    score: ExplanationScore | None
    strongest: Context | None
    """None where it never fired."""


class DemoResults(NamedTuple):
    """Everything that the demo's report shows."""

    run: RunInfo
    facts: list[SaeFacts]
    scores: list[SaeScore]
    features: dict[FeatureId, FeatureResult]


def whole_run(engine: Engine, settings: Mapping[str, object], *, seed: int, device: str) -> RunInfo | None:
    """The newest finished demo of these settings whose results are all still there; None where there is none."""
    wanted = json.loads(json.dumps(settings))
    with reading(engine) as session:
        for run in store.list_runs(session, limit=1000):
            same = (run.command, run.seed, run.device) == ("demo", seed, device) and run.settings == wanted
            if same and run.finished is not None and _is_whole(engine, run):
                return run
    return None


def run_to_continue(engine: Engine, wanted: RunInfo) -> RunInfo | None:
    """The newest demo with the wanted run's settings, seed, device, versions and code; None where there is none."""
    with reading(engine) as session:
        for run in store.list_runs(session, limit=1000):
            if _recipe(run) == _recipe(wanted):
                return run
    return None


def _recipe(run: RunInfo) -> tuple[object, ...]:
    """What two runs with the same results have in common."""
    settings = json.loads(json.dumps(run.settings))
    return run.command, run.seed, run.device, settings, dict(run.versions), run.git_commit


def _n_features(run: RunInfo) -> int:
    n = run.settings["n_features"]
    assert isinstance(n, int), "a demo's settings are ours"
    return n


class Left(NamedTuple):
    """The organism's SAEs for which a run still has something to do, by slug."""

    facts: list[str]
    scores: list[str]
    contexts: list[str]


def left_of(engine: Engine, run: RunInfo) -> Left:
    """What this run lacks; what another run has written over is lacking too."""
    n_concepts = len(organism_concepts())
    left = Left([], [], [])
    with reading(engine) as session:
        found = {one.sae.slug: one for one in store.list_saes(session)}
        for slug in organism_sae_paths():
            one = found.get(slug)
            if one is None or one.facts is None or one.facts.run_id != run.run_id:
                left.facts.append(slug)
            scores = [] if one is None else [kept.record for kept in one.scores if kept.run_id == run.run_id]
            if len(scores) != n_concepts:
                left.scores.append(slug)
            if one is None or not _is_collected(session, run, slug, {score.best_feature.index for score in scores}):
                left.contexts.append(slug)
    return left


def _is_collected(session: Session, run: RunInfo, slug: str, best: set[int]) -> bool:
    collected, scored = (
        store.features_done(session, slug, kind, run_id=run.run_id)
        for kind in (store.FeatureKind.TOP_CONTEXTS, store.FeatureKind.CONCEPT_SCORES)
    )
    # of fewer features than concepts, some concepts' best ones are not among them
    are_chosen = best <= collected or collected < best
    return len(collected) >= min(_n_features(run), len(scored)) > 0 and are_chosen


def _is_whole(engine: Engine, run: RunInfo) -> bool:
    """Whether facts, scores and contexts of every SAE are still this run's."""
    return not any(left_of(engine, run))


def chosen_features(engine: Engine, run: RunInfo, slug: str) -> list[int]:
    """The features of an SAE to explain: the best of every concept, then every concept's next ones, at most as many as
    the run's settings say.

    Choosing texts have found the best ones; the next ones follow by their rate gap on judging texts, which is all that
    is kept of them (ties: AUROC, then the lower index).
    """
    by_concept: dict[str, list[ConceptScore]] = {}
    with reading(engine) as session:
        best = {kept.record.concept: kept.record.best_feature for kept in store.load_sae_scores(session, slug)}
        scored = store.features_done(session, slug, store.FeatureKind.CONCEPT_SCORES, run_id=run.run_id)
        for index in sorted(scored):
            for kept in store.load_concept_scores(session, FeatureId(sae=slug, index=index)):
                if kept.run_id == run.run_id:
                    by_concept.setdefault(kept.record.concept, []).append(kept.record)
    lists = [
        sorted(by_concept[name], key=lambda one: (one.feature != best[name], -one.rate_gap.value, -one.auroc.value))
        for name in sorted(by_concept)
    ]
    places = range(max(map(len, lists), default=0))
    by_place = [one[place].feature.index for place in places for one in lists if place < len(one)]
    return list(dict.fromkeys(by_place))[: _n_features(run)]


def kept_contexts(engine: Engine, run: RunInfo, slug: str) -> list[Collected]:
    """What the run collected of an SAE's features, by index."""
    found = []
    with reading(engine) as session:
        for index in sorted(store.features_done(session, slug, store.FeatureKind.TOP_CONTEXTS, run_id=run.run_id)):
            feature = FeatureId(sae=slug, index=index)
            top, sample = store.load_top_contexts(session, feature), store.load_context_sample(session, feature)
            assert top is not None, "its contexts are this run's"
            assert sample is not None, "a transaction keeps both"
            found.append(Collected(top.record, sample.record))
    return found


def explained_features(engine: Engine, run: RunInfo, slug: str) -> set[FeatureId]:
    """Features of an SAE whose explanations the run has judged; one that cannot be judged is in no run's."""
    with reading(engine) as session:
        done = store.features_done(
            session, slug, store.FeatureKind.EXPLANATION_SCORES, explainer=lexical.EXPLAINER,
            prompt_version=lexical.VERSION, run_id=run.run_id,
        )  # fmt: skip
    return {FeatureId(sae=slug, index=index) for index in done}


def load_results(engine: Engine, run: RunInfo) -> DemoResults:
    """What the run kept of the organism's SAEs."""
    facts: list[SaeFacts] = []
    scores: list[SaeScore] = []
    features: dict[FeatureId, FeatureResult] = {}
    with reading(engine) as session:
        for one in store.list_saes(session):
            if one.facts is None or one.facts.run_id != run.run_id:
                continue
            facts.append(one.facts.record)
            scores += [kept.record for kept in one.scores]
            slug = one.sae.slug
            done = store.features_done(session, slug, store.FeatureKind.TOP_CONTEXTS, run_id=run.run_id)
            for index in sorted(done):
                feature = FeatureId(sae=slug, index=index)
                top = store.load_top_contexts(session, feature)
                assert top is not None, "its contexts are this run's"
                explained = [
                    known for known in store.load_feature(session, feature).explanations
                    if known.explanation.record.explainer == lexical.EXPLAINER
                    and known.explanation.record.prompt_version == lexical.VERSION
                ]  # fmt: skip
                judged = [kept.record for known in explained for kept in known.scores if kept.run_id == run.run_id]
                features[feature] = FeatureResult(
                    explained[0].explanation.record if explained else None,
                    judged[0] if judged else None,
                    top.record.contexts[0] if top.record.contexts else None,
                )
    return DemoResults(run, facts, scores, features)
