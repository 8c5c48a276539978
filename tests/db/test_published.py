"""Scores and tags that others published survive the store, on both databases, and stay apart by source."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.store import (
    Kept,
    list_tags,
    load_feature_tags,
    load_published_of,
    load_published_scores,
    save_feature_tags,
    save_published_scores,
    save_run,
    save_sae,
)
from db.tables import Base
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import FeatureTags, PublishedScore
from tests.db import builders as a
from tests.db import strategies as some


def score(index: int, value: float = 0.5, source: str = "theirs") -> PublishedScore:
    return PublishedScore(feature=a.feature(index), method="correlation_score", value=value, source=source)


def tagged(index: int, *tags: str, source: str = "theirs") -> FeatureTags:
    return FeatureTags(feature=a.feature(index), tags=tags, source=source)


def test_published_scores_and_tags_survive(shared_engine: Engine) -> None:
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
        run, sae = data.draw(some.runs), data.draw(some.saes(st.none()))
        feature = data.draw(some.features(sae))
        number = PublishedScore(
            feature=feature, method=data.draw(some.names), value=data.draw(some.numbers), source=data.draw(some.names)
        )
        names = data.draw(st.lists(some.names, min_size=1, max_size=4, unique=True))
        domains = FeatureTags(feature=feature, tags=tuple(names), source=data.draw(some.names))
        with writing(shared_engine) as session:
            save_run(session, run)
            save_sae(session, sae, run_id=run.run_id)
            save_published_scores(session, [number], run_id=run.run_id)
            save_feature_tags(session, [domains], run_id=run.run_id)
        with reading(shared_engine) as session:
            assert load_published_scores(session, feature) == [Kept(number, run.run_id)]
            assert load_feature_tags(session, feature) == [Kept(domains, run.run_id)]

    survive()


def test_a_source_replaces_its_own_word_and_no_other(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_published_scores(session, [score(3), score(3, 0.75, "ours")], run_id=a.RUN)
        save_feature_tags(session, [tagged(3, "terror", "politics"), tagged(3, "cult", source="ours")], run_id=a.RUN)
        save_published_scores(session, [score(3, 0.25)], run_id=a.LATER_RUN)
        save_feature_tags(session, [tagged(3, "violence"), tagged(4)], run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert load_published_scores(session, a.feature(3)) == [
            Kept(score(3, 0.75, "ours"), a.RUN),
            Kept(score(3, 0.25), a.LATER_RUN),
        ]
        assert load_feature_tags(session, a.feature(3)) == [
            Kept(tagged(3, "cult", source="ours"), a.RUN),
            Kept(tagged(3, "violence"), a.LATER_RUN),
        ]
        assert load_feature_tags(session, a.feature(4)) == []


def test_a_page_of_features_has_what_each_has_alone(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_published_scores(session, [score(3), score(3, 0.75, "ours"), score(5)], run_id=a.RUN)
        save_feature_tags(session, [tagged(3, "terror", "cult"), tagged(4, "cult", source="ours")], run_id=a.RUN)
        save_feature_tags(session, [tagged(4, "cult"), tagged(9, "cult")], run_id=a.RUN)
    with reading(engine) as session:
        page = [a.feature(index) for index in (5, 3, 4, 8)]
        found = load_published_of(session, page)
        assert list(found) == page
        for feature, (scores, tags) in found.items():
            assert scores == [kept.record for kept in load_published_scores(session, feature)]
            assert tags == [kept.record for kept in load_feature_tags(session, feature)]
        assert found[a.feature(4)][1] != []
        assert load_published_of(session, []) == {}
        assert list_tags(session) == {"cult": 3, "terror": 1}


def test_no_tags_take_the_former_ones_away(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_feature_tags(session, [tagged(3, "violence")], run_id=a.RUN)
        save_feature_tags(session, [tagged(3)], run_id=a.RUN)
        assert load_feature_tags(session, a.feature(3)) == []


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        with pytest.raises(BadRecord, match=r"the features of .* are 0 to 15"):
            save_published_scores(session, [score(a.WIDTH)], run_id=a.RUN)
        with pytest.raises(NotFound, match="run `nope`"):
            save_feature_tags(session, [tagged(3, "cult")], run_id="nope")
    with pytest.raises(BadRecord, match="a tag appears twice"):
        tagged(3, "cult", "cult")
    with pytest.raises(BadRecord, match="is finite"):
        score(3, float("nan"))
    with pytest.raises(BadRecord, match="names its method and source"):
        score(3, source="")
