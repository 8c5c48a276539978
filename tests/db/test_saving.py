"""Saving: again replaces, halves are never written, and what cannot be kept is refused with its value."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from db import tables
from db.engine import reading, writing
from db.store import (
    FeatureKind,
    Kept,
    features_done,
    finish_run,
    list_concepts,
    list_runs,
    load_concept_scores,
    load_explanation_scores,
    load_explanations,
    load_feature,
    load_model,
    load_run,
    load_sae,
    load_sae_facts,
    load_sae_scores,
    load_top_contexts,
    save_concept_scores,
    save_concepts,
    save_explanation_scores,
    save_explanations,
    save_model,
    save_run,
    save_sae,
    save_sae_facts,
    save_sae_scores,
    save_top_contexts,
)
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import Concept, Context, FeatureId
from tests.db import builders as a

ROWS = (
    tables.SaeFactsRow, tables.SaeScoreRow, tables.FeatureRow, tables.ContextsRow, tables.ConceptScoreRow,
    tables.ExplanationRow, tables.ExplanationScoreRow,
)  # fmt: skip


def save_results(session: Session, run_id: str, gap: float = 0.5) -> None:
    save_sae_facts(session, a.facts(l0=gap), run_id=run_id)
    save_sae_scores(session, [a.sae_score(gap=gap)], run_id=run_id)
    save_concept_scores(session, [a.concept_score(3, gap=gap)], run_id=run_id)
    save_top_contexts(session, [a.top_contexts(3, density=gap)], run_id=run_id)
    save_explanations(session, [a.explanation(3)], run_id=run_id)
    save_explanation_scores(session, [a.explanation_score(3, value=gap)], run_id=run_id)


def row_counts(engine: Engine) -> dict[str, int]:
    with reading(engine) as session:
        return {row.__tablename__: session.scalar(select(func.count()).select_from(row)) or 0 for row in ROWS}


def test_saving_the_same_key_again_replaces_it_and_names_the_newer_run(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_results(session, a.RUN, gap=0.25)
    with writing(engine) as session:
        save_results(session, a.LATER_RUN, gap=0.75)
    assert row_counts(engine) == dict.fromkeys((row.__tablename__ for row in ROWS), 1)
    with reading(engine) as session:
        assert load_sae_facts(session, a.SAE) == Kept(a.facts(l0=0.75), a.LATER_RUN)
        assert load_sae_scores(session, a.SAE) == [Kept(a.sae_score(gap=0.75), a.LATER_RUN)]
        assert load_concept_scores(session, a.feature(3)) == [Kept(a.concept_score(3, gap=0.75), a.LATER_RUN)]
        assert load_top_contexts(session, a.feature(3)) == Kept(a.top_contexts(3, density=0.75), a.LATER_RUN)
        assert load_explanation_scores(session, a.feature(3)) == [Kept(a.explanation_score(3, 0.75), a.LATER_RUN)]


def test_an_exception_in_the_block_leaves_nothing_behind(engine: Engine) -> None:
    a.catalogue(engine)
    before = row_counts(engine)

    def save_and_stop(session: Session) -> None:
        save_results(session, a.RUN)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), writing(engine) as session:
        save_and_stop(session)
    assert row_counts(engine) == before


def test_a_generator_that_fails_after_many_records_leaves_nothing_behind(engine: Engine) -> None:
    a.catalogue(engine)

    def endless() -> Any:
        yield from (a.concept_score(index, concept) for index in range(16) for concept in a.CONCEPTS)
        for _ in range(300):
            yield a.concept_score(1)
        raise RuntimeError("disk of the corpus")

    with pytest.raises(RuntimeError, match="disk of the corpus"), writing(engine) as session:
        save_concept_scores(session, endless(), run_id=a.RUN)
    assert row_counts(engine)["concept_score"] == 0


def test_scores_of_an_explanation_go_when_its_text_changes(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_explanations(session, [a.explanation(3), a.explanation(4)], run_id=a.RUN)
        save_explanation_scores(session, [a.explanation_score(3), a.explanation_score(4)], run_id=a.RUN)
    with writing(engine) as session:
        save_explanations(session, [a.explanation(3, "fires on food"), a.explanation(4)], run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert load_explanations(session, a.feature(3)) == [Kept(a.explanation(3, "fires on food"), a.LATER_RUN)]
        assert load_explanation_scores(session, a.feature(3)) == []
        assert len(load_explanation_scores(session, a.feature(4))) == 1  # the same text keeps its score


def test_contexts_saved_after_scores_fill_the_feature_in(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_concept_scores(session, [a.concept_score(3)], run_id=a.RUN)
    with reading(engine) as session:
        assert load_feature(session, a.feature(3)).top_contexts is None
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3)], run_id=a.RUN)
        save_concept_scores(session, [a.concept_score(3)], run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert load_feature(session, a.feature(3)).top_contexts == Kept(a.top_contexts(3), a.RUN)


def test_a_run_is_finished_and_listed_newest_first(engine: Engine) -> None:
    a.catalogue(engine)
    ended = datetime(2026, 11, 21, 9, tzinfo=UTC)
    newest = dataclasses.replace(a.run("run-3"), started=ended)
    with writing(engine) as session:
        save_run(session, newest)
        finish_run(session, a.RUN, ended)
    with reading(engine) as session:
        assert load_run(session, a.RUN) == dataclasses.replace(a.run(), finished=ended)
        assert list_runs(session, limit=1) == [newest]


def test_numpy_numbers_in_a_record_are_kept_as_numbers(engine: Engine) -> None:
    a.catalogue(engine)
    score = dataclasses.replace(a.concept_score(3), rate_positive=np.float32(0.5), n_positive=np.int64(7))
    with writing(engine) as session:
        save_concept_scores(session, [score], run_id=a.RUN)
    with reading(engine) as session:
        assert load_concept_scores(session, a.feature(3))[0].record == score


def test_activations_that_are_no_float32_are_rounded_to_it(engine: Engine) -> None:
    a.catalogue(engine)
    context = Context(tokens=("a",), token_ids=(1,), activations=(0.1,), peak=0, source_id="d")
    found = dataclasses.replace(a.top_contexts(3), contexts=(context,))
    with writing(engine) as session:
        save_top_contexts(session, [found], run_id=a.RUN)
    with reading(engine) as session:
        kept = load_top_contexts(session, a.feature(3))
        assert kept is not None
        assert kept.record.contexts[0].activations == (float(np.float32(0.1)),)


def with_contexts(**changes: Any) -> Any:
    context = Context(
        **{"tokens": ("a",), "token_ids": (1,), "activations": (1.0,), "peak": 0, "source_id": "d"} | changes
    )
    return dataclasses.replace(a.top_contexts(3), contexts=(context,))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Session], None]]] = {
    "unknown run": (NotFound, "run `nowhere`", lambda s: save_sae_facts(s, a.facts(), run_id="nowhere")),
    "run with NUL": (NotFound, "run", lambda s: save_model(s, a.model(), run_id="a\x00b")),
    "unknown run finishes": (NotFound, "nowhere", lambda s: finish_run(s, "nowhere", datetime.now(UTC))),
    "unknown model": (
        NotFound, "save the model first",
        lambda s: save_sae(s, dataclasses.replace(a.sae("other"), model_id="gpt5"), run_id=a.RUN),
    ),
    "unknown SAE": (
        NotFound, "no SAE is called `other`",
        lambda s: save_sae_facts(s, dataclasses.replace(a.facts(), sae="other"), run_id=a.RUN),
    ),
    "unknown concept": (
        NotFound, "'peace'", lambda s: save_concept_scores(s, [a.concept_score(3, "peace")], run_id=a.RUN)
    ),
    "unknown explanation": (
        NotFound, "save the explanation", lambda s: save_explanation_scores(s, [a.explanation_score(3)], run_id=a.RUN)
    ),
    "index beyond the width": (
        BadRecord, "0 to 15", lambda s: save_top_contexts(s, [a.top_contexts(16)], run_id=a.RUN)
    ),
    "other width under the slug": (
        BadRecord, "another slug", lambda s: save_sae(s, a.sae(width=32), run_id=a.RUN)
    ),
    "other site under the slug": (
        BadRecord, "resid_post.2", lambda s: save_sae(s, a.sae(site="resid_post.2"), run_id=a.RUN)
    ),
    "best feature of another SAE": (
        BadRecord, "another SAE",
        lambda s: save_sae_scores(
            s, [dataclasses.replace(a.sae_score(), best_feature=FeatureId(sae="x", index=1))], run_id=a.RUN
        ),
    ),
    "NUL in an explanation": (
        BadRecord, "NUL", lambda s: save_explanations(s, [a.explanation(3, "a\x00b")], run_id=a.RUN)
    ),
    "half a character in an explanation": (
        BadRecord, "half a character", lambda s: save_explanations(s, [a.explanation(3, "a\ud800")], run_id=a.RUN)
    ),
    "key too long": (
        BadRecord, "300 characters",
        lambda s: save_explanations(s, [a.explanation(3, explainer="m" * 301)], run_id=a.RUN),
    ),
    "fact that is not finite": (
        BadRecord, "`l0` must be finite", lambda s: save_sae_facts(s, a.facts(l0=float("nan")), run_id=a.RUN)
    ),
    "seed beyond 64 bits": (
        BadRecord, "64 bits", lambda s: save_run(s, dataclasses.replace(a.run("big"), seed=2**63))
    ),
    "settings that are no JSON": (
        BadRecord, "JSON", lambda s: save_run(s, dataclasses.replace(a.run("odd"), settings={"a": {1, 2}}))
    ),
    "settings that are not finite": (
        BadRecord, "JSON", lambda s: save_run(s, dataclasses.replace(a.run("odd"), settings={"a": float("inf")}))
    ),
    "token id beyond 32 bits": (
        BadRecord, "32 bits", lambda s: save_top_contexts(s, [with_contexts(token_ids=(2**31,))], run_id=a.RUN)
    ),
    "activation beyond float32": (
        BadRecord, "32-bit float", lambda s: save_top_contexts(s, [with_contexts(activations=(1e39,))], run_id=a.RUN)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_refused_with_its_value(shared_engine: Engine, case: str) -> None:
    a.catalogue(shared_engine)
    error, message, save = REFUSED[case]
    before = row_counts(shared_engine)
    with pytest.raises(error, match=message), writing(shared_engine) as session:
        save(session)
    assert row_counts(shared_engine) == before


@pytest.mark.parametrize("slug", ["other", "", "a\x00b", "\ud800", "x" * 5000])
def test_an_unknown_name_is_not_found(shared_engine: Engine, slug: str) -> None:
    with reading(shared_engine) as session:
        for load in (load_sae, load_sae_facts, load_sae_scores, load_model, load_run):
            with pytest.raises(NotFound):
                load(session, slug)
        with pytest.raises(NotFound):
            features_done(session, slug, FeatureKind.EXPLANATIONS)


def test_an_index_beyond_the_width_says_the_range_and_one_within_it_is_empty(engine: Engine) -> None:
    a.catalogue(engine)
    with reading(engine) as session:
        with pytest.raises(NotFound, match=f"{a.SAE} has no feature 16; its features are 0 to 15"):
            load_feature(session, a.feature(16))
        empty = load_feature(session, a.feature(15))
        assert (empty.sae, empty.top_contexts, empty.concept_scores, empty.explanations) == (a.sae(), None, (), ())


def test_features_done_tells_kinds_apart(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(1), a.top_contexts(2)], run_id=a.RUN)
        save_concept_scores(session, [a.concept_score(3), a.concept_score(4, "cult")], run_id=a.RUN)
        save_explanations(session, [a.explanation(5), a.explanation(6, explainer="llm")], run_id=a.LATER_RUN)
        save_explanation_scores(session, [a.explanation_score(6, explainer="llm")], run_id=a.RUN)
    with reading(engine) as session:
        assert features_done(session, a.SAE, FeatureKind.TOP_CONTEXTS) == {1, 2}
        assert features_done(session, a.SAE, FeatureKind.TOP_CONTEXTS, run_id=a.LATER_RUN) == set()
        assert features_done(session, a.SAE, FeatureKind.CONCEPT_SCORES) == {3, 4}
        assert features_done(session, a.SAE, FeatureKind.CONCEPT_SCORES, concept="cult") == {4}
        assert features_done(session, a.SAE, FeatureKind.EXPLANATIONS) == {5, 6}
        assert features_done(session, a.SAE, FeatureKind.EXPLANATIONS, explainer="llm", prompt_version="1") == {6}
        assert features_done(session, a.SAE, FeatureKind.EXPLANATIONS, prompt_version="2") == set()
        assert features_done(session, a.SAE, FeatureKind.EXPLANATION_SCORES, method="token_simulation") == {6}


def test_concepts_are_listed_by_domain_category_and_name(engine: Engine) -> None:
    a.catalogue(engine)
    everyday = Concept(name="Zoo", category="animals", domain="everyday", harmful=False)
    with writing(engine) as session:
        save_concepts(session, [everyday], run_id=a.RUN)
    with reading(engine) as session:
        assert [concept.name for concept in list_concepts(session)] == ["Zoo", "abuse", "cult", "weapons"]
