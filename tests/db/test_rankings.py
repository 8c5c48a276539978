"""Specificity and rankings survive the store whole, on both databases; a ranking belongs to its run."""

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.store import (
    Kept,
    list_sae_rankings,
    load_sae_rankings,
    load_sae_specificity,
    save_concepts,
    save_run,
    save_sae,
    save_sae_rankings,
    save_sae_specificity,
)
from db.tables import Base
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import SaeRanking, SaeRef, SaeSpecificity
from tests.db import builders as a
from tests.db import strategies as some

OTHER = "tiny.resid_post.3.relu-16"


def specificity(value: float = 0.5) -> SaeSpecificity:
    return SaeSpecificity(
        sae=a.SAE, concept="weapons", n_features=a.WIDTH, thresholds=(0.1, 0.5), l0=(4, 1), l0_null=(2, 0),
        i_cdf=a.estimate(0.25), i_cdf_null=a.estimate(0.125), specific=a.estimate(value), n_specific=1,
    )  # fmt: skip


def ranked(sae: str, place: int, tied_with: tuple[str, ...] = ()) -> SaeRanking:
    return SaeRanking(
        sae=sae, place=place, specific=a.estimate(0.5), rate_gap=a.estimate(0.75), n_specific=1.5, tied_with=tied_with
    )


def catalogue(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_sae(session, a.sae(slug=OTHER), run_id=a.RUN)


@st.composite
def any_specificity(draw: st.DrawFn, sae: SaeRef, concept: str) -> SaeSpecificity:
    n = draw(st.integers(1, 4))
    counts = st.lists(st.integers(0, 2**62), min_size=n, max_size=n).map(tuple)
    return SaeSpecificity(
        sae=sae.slug,
        concept=concept,
        n_features=sae.width,
        thresholds=draw(st.lists(some.numbers, min_size=n, max_size=n).map(tuple)),
        l0=draw(counts),
        l0_null=draw(counts),
        i_cdf=draw(some.estimates()),
        i_cdf_null=draw(some.estimates()),
        specific=draw(some.estimates()),
        n_specific=draw(st.integers(0, 2**62)),
    )


def test_specificity_and_rankings_survive(shared_engine: Engine) -> None:
    @settings(
        max_examples=25,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.data())
    def survive(data: st.DataObject) -> None:
        with writing(shared_engine) as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        run, sae, concept = data.draw(some.runs), data.draw(some.saes(st.none())), data.draw(some.concepts)
        found = data.draw(any_specificity(sae, concept.name))
        place = SaeRanking(
            sae=sae.slug,
            place=1,
            specific=data.draw(st.none() | some.estimates()),
            rate_gap=data.draw(some.estimates()),
            n_specific=data.draw(st.none() | some.numbers),
            tied_with=tuple(data.draw(st.lists(some.slugs.filter(lambda slug: slug != sae.slug), max_size=3))),
        )
        with writing(shared_engine) as session:
            save_run(session, run)
            save_sae(session, sae, run_id=run.run_id)
            save_concepts(session, [concept], run_id=run.run_id)
            save_sae_specificity(session, found, run_id=run.run_id)
            save_sae_rankings(session, [place], run_id=run.run_id)
        with reading(shared_engine) as session:
            assert load_sae_specificity(session, sae.slug) == [Kept(found, run.run_id)]
            assert load_sae_rankings(session, run.run_id) == [place]

    survive()


def test_a_later_score_replaces_and_a_later_ranking_stands_beside(engine: Engine) -> None:
    catalogue(engine)
    first = [ranked(a.SAE, 1, (OTHER,)), ranked(OTHER, 2, (a.SAE,))]
    later = [ranked(OTHER, 1), ranked(a.SAE, 2)]
    with writing(engine) as session:
        save_sae_specificity(session, specificity(), run_id=a.RUN)
        save_sae_specificity(session, specificity(0.25), run_id=a.LATER_RUN)
        save_sae_rankings(session, first, run_id=a.RUN)
        save_sae_rankings(session, first, run_id=a.LATER_RUN)
        save_sae_rankings(session, later, run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert load_sae_specificity(session, a.SAE) == [Kept(specificity(0.25), a.LATER_RUN)]
        assert load_sae_specificity(session, OTHER) == []
        assert load_sae_rankings(session, a.RUN) == first
        assert load_sae_rankings(session, a.LATER_RUN) == later


def test_a_ranking_of_fewer_saes_leaves_none_of_the_old_one(engine: Engine) -> None:
    catalogue(engine)
    with writing(engine) as session:
        save_sae_rankings(session, [ranked(a.SAE, 1), ranked(OTHER, 2)], run_id=a.RUN)
        save_sae_rankings(session, [ranked(OTHER, 1)], run_id=a.RUN)
    with reading(engine) as session:
        assert load_sae_rankings(session, a.RUN) == [ranked(OTHER, 1)]


def test_runs_that_ranked_are_listed_newest_first(engine: Engine) -> None:
    catalogue(engine)
    with writing(engine) as session:
        save_run(session, dataclasses.replace(a.run(a.LATER_RUN), started=a.run().started + timedelta(hours=1)))
        save_run(session, dataclasses.replace(a.run("run-3"), started=a.run().started + timedelta(hours=2)))
        save_sae_rankings(session, [ranked(a.SAE, 1), ranked(OTHER, 2)], run_id=a.RUN)
        save_sae_rankings(session, [ranked(OTHER, 1)], run_id=a.LATER_RUN)
    with reading(engine) as session:
        found = list_sae_rankings(session)
        assert [(run.run_id, [one.sae for one in some]) for run, some in found] == [
            (a.LATER_RUN, [OTHER]),
            (a.RUN, [a.SAE, OTHER]),
        ]
        assert list_sae_rankings(session, limit=1) == found[:1]


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    catalogue(engine)
    with writing(engine) as session:
        with pytest.raises(NotFound, match="concept `food`"):
            save_sae_specificity(session, dataclasses.replace(specificity(), concept="food"), run_id=a.RUN)
        with pytest.raises(BadRecord, match="has 16 features; its score speaks of 8"):
            save_sae_specificity(session, dataclasses.replace(specificity(), n_features=8), run_id=a.RUN)
        with pytest.raises(BadRecord, match="places of a ranking count from 1"):
            save_sae_rankings(session, [ranked(OTHER, 2)], run_id=a.RUN)
        with pytest.raises(NotFound, match="run `nope`"):
            load_sae_rankings(session, "nope")
