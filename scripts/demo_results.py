"""What a run of the demo kept, read back from the database: for its report, and so that a whole run is not repeated."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Engine

from db import store
from db.engine import reading
from safe_sail.features import lexical
from safe_sail.organism.concept_data import organism_concepts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import Context, Explanation, ExplanationScore, FeatureId, RunInfo, SaeFacts, SaeScore


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


def _is_whole(engine: Engine, run: RunInfo) -> bool:
    """Whether facts, scores and contexts of every SAE are still this run's, and its features are explained."""
    n_concepts = len(organism_concepts())
    with reading(engine) as session:
        found = {one.sae.slug: one for one in store.list_saes(session)}
        for slug in organism_sae_paths():
            one = found.get(slug)
            if one is None or one.facts is None or one.facts.run_id != run.run_id:
                return False
            if sum(kept.run_id == run.run_id for kept in one.scores) != n_concepts:
                return False
            collected = store.features_done(session, slug, store.FeatureKind.TOP_CONTEXTS, run_id=run.run_id)
            best = {kept.record.best_feature.index for kept in one.scores}
            if len(collected) != run.settings["n_features"] or not best <= collected:
                return False
    return True


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
