"""Every record survives the store, on both databases: saved in one transaction, read in another, equal."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.store import (
    FeatureKind,
    Kept,
    features_done,
    list_concepts,
    list_models,
    list_saes,
    load_concept_scores,
    load_context_sample,
    load_explanation_scores,
    load_explanations,
    load_feature,
    load_intervention_scores,
    load_model,
    load_run,
    load_sae,
    load_sae_facts,
    load_sae_scores,
    load_top_contexts,
    save_concept_scores,
    save_concepts,
    save_context_samples,
    save_explanation_scores,
    save_explanations,
    save_intervention_scores,
    save_model,
    save_run,
    save_sae,
    save_sae_facts,
    save_sae_scores,
    save_top_contexts,
)
from db.tables import Base
from safe_sail.records import ModelRef, RunInfo, SaeRef
from tests.db import strategies as some

few = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    # the database is shared by the examples and cleared before each
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_runs_survive(shared_engine: Engine) -> None:
    @few
    @given(some.runs)
    def survive(run: RunInfo) -> None:
        clear(shared_engine)
        with writing(shared_engine) as session:
            save_run(session, run)
        with reading(shared_engine) as session:
            assert load_run(session, run.run_id) == run

    survive()


def test_models_and_saes_survive(shared_engine: Engine) -> None:
    @few
    @given(some.runs, some.models, st.data())
    def survive(run: RunInfo, model: ModelRef, data: st.DataObject) -> None:
        clear(shared_engine)
        sae = data.draw(some.saes(st.sampled_from([None, model.model_id])))
        facts = data.draw(some.sae_facts(sae))
        with writing(shared_engine) as session:
            save_run(session, run)
            save_model(session, model, run_id=run.run_id)
            save_sae(session, sae, run_id=run.run_id)
            save_sae_facts(session, facts, run_id=run.run_id)
        with reading(shared_engine) as session:
            assert load_model(session, model.model_id) == model
            assert list_models(session) == [Kept(model, run.run_id)]
            assert load_sae(session, sae.slug) == sae
            assert load_sae_facts(session, sae.slug) == Kept(facts, run.run_id)
            (listed,) = list_saes(session)
            assert (listed.sae, listed.facts, listed.run_id) == (sae, Kept(facts, run.run_id), run.run_id)

    survive()


def test_concepts_and_scores_survive(shared_engine: Engine) -> None:
    @few
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        run, sae = start(shared_engine, data)
        concept = data.draw(some.concepts)
        sae_score = data.draw(some.sae_scores(sae, concept.name))
        score = data.draw(some.concept_scores(sae, concept.name))
        with writing(shared_engine) as session:
            save_concepts(session, [concept], run_id=run)
            save_sae_scores(session, [sae_score], run_id=run)
            save_concept_scores(session, [score], run_id=run)
        with reading(shared_engine) as session:
            assert list_concepts(session) == [concept]
            assert load_sae_scores(session, sae.slug) == [Kept(sae_score, run)]
            assert load_concept_scores(session, score.feature) == [Kept(score, run)]
            assert load_feature(session, score.feature).concept_scores == (Kept(score, run),)
            done = features_done(session, sae.slug, FeatureKind.CONCEPT_SCORES, concept=concept.name, run_id=run)
            assert done == {score.feature.index}

    survive()


def test_contexts_survive_with_every_character(shared_engine: Engine) -> None:
    @few
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        run, sae = start(shared_engine, data)
        found = data.draw(some.top_contexts(sae))
        with writing(shared_engine) as session:
            save_top_contexts(session, [found], run_id=run)
        with reading(shared_engine) as session:
            assert load_top_contexts(session, found.feature) == Kept(found, run)
            assert load_feature(session, found.feature).top_contexts == Kept(found, run)
            assert features_done(session, sae.slug, FeatureKind.TOP_CONTEXTS) == {found.feature.index}

    survive()


def test_samples_survive_until_the_contexts_are_collected_again(shared_engine: Engine) -> None:
    @few
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        run, sae = start(shared_engine, data)
        sample = data.draw(some.context_samples(sae))
        with writing(shared_engine) as session:
            save_context_samples(session, [sample], run_id=run)
        with reading(shared_engine) as session:
            assert load_context_sample(session, sample.feature) == Kept(sample, run)
            assert load_top_contexts(session, sample.feature) is None
        again = replace(data.draw(some.top_contexts(sae)), feature=sample.feature)
        with writing(shared_engine) as session:
            save_top_contexts(session, [again], run_id=run)
        with reading(shared_engine) as session:
            assert load_context_sample(session, sample.feature) is None

    survive()


def test_explanations_and_their_scores_survive(shared_engine: Engine) -> None:
    @few
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        run, sae = start(shared_engine, data)
        explanation = data.draw(some.explanations(sae))
        score = data.draw(some.explanation_scores(explanation))
        with writing(shared_engine) as session:
            save_explanations(session, [explanation], run_id=run)
            save_explanation_scores(session, [score], run_id=run)
        with reading(shared_engine) as session:
            assert load_explanations(session, explanation.feature) == [Kept(explanation, run)]
            assert load_explanation_scores(session, explanation.feature) == [Kept(score, run)]
            (explained,) = load_feature(session, explanation.feature).explanations
            assert (explained.explanation, explained.scores) == (Kept(explanation, run), (Kept(score, run),))

    survive()


def test_interventions_survive_and_replace_their_like(shared_engine: Engine) -> None:
    @few
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        run, sae = start(shared_engine, data)
        score = data.draw(some.intervention_scores(sae))
        again = replace(data.draw(some.intervention_scores(sae)), feature=score.feature, prompts=score.prompts)
        with writing(shared_engine) as session:
            save_intervention_scores(session, [score], run_id=run)
            save_intervention_scores(session, [again], run_id=run)
        kept = {one.intervention: one for one in (score, again)}
        with reading(shared_engine) as session:
            expected = [Kept(kept[kind], run) for kind in sorted(kept)]
            assert load_intervention_scores(session, score.feature) == expected

    survive()


def start(engine: Engine, data: st.DataObject) -> tuple[str, SaeRef]:
    """An empty store with any run and any SAE."""
    clear(engine)
    run, sae = data.draw(some.runs), data.draw(some.saes(st.none()))
    with writing(engine) as session:
        save_run(session, run)
        save_sae(session, sae, run_id=run.run_id)
    return run.run_id, sae


def clear(engine: Engine) -> None:
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
