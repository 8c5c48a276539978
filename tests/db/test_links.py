"""Studies of links survive the store whole, on both databases, and their links are found from either end."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db import store
from db.engine import reading, writing
from db.store.cursors import LinkPlace
from db.tables import Base
from safe_sail.errors import BadInput, BadRecord, NotFound
from safe_sail.records import FeatureLink, LinkFlow, LinkKind, LinkMeasure, LinkStudy
from tests.db import builders as a
from tests.db import strategies as some


def measure(value: float) -> LinkMeasure:
    return LinkMeasure(value=a.estimate(value), control=a.estimate(0.0), control_high=0.1, shuffled=0.01, q_value=0.02)


def link(
    index: int = 3, kind: LinkKind = LinkKind.HEAD, target: str = "L1.H0", cause: float = 1.0, linked: bool = True,
    concept: str = "weapons",
) -> FeatureLink:  # fmt: skip
    return FeatureLink(
        feature=a.feature(index), concept=concept, kind=kind, target=target, flow=LinkFlow.INTO_FEATURE,
        weights=measure(0.5), cause=measure(cause), is_linked=linked, is_direct=linked,
    )  # fmt: skip


def study(*links: FeatureLink, slug: str = "tiny.links") -> LinkStudy:
    return LinkStudy(
        slug=slug, model_id="tiny", sae=a.SAE, ablation="mean", alpha=0.05, n_pairs={"weapons": 48},
        n_tested=len(links), n_linked=sum(one.is_linked for one in links), n_linked_shuffled=0, n_passes=12,
        notes=("No direction was given.",), links=links,
    )  # fmt: skip


measures = st.builds(
    LinkMeasure, value=some.estimates(), control=some.estimates(), control_high=st.floats(0, 1e9),
    shuffled=some.numbers, q_value=some.shares,
)  # fmt: skip


@st.composite
def any_link(draw: st.DrawFn) -> FeatureLink:
    weights, cause = draw(st.tuples(measures, measures | st.none()).flatmap(lambda two: st.permutations(two)))
    is_linked = draw(st.booleans())
    return FeatureLink(
        feature=a.feature(draw(st.integers(0, a.WIDTH - 1))), concept=draw(some.names),
        kind=draw(st.sampled_from(LinkKind)), target=draw(some.names), flow=draw(st.sampled_from(LinkFlow)),
        weights=weights, cause=cause, cosine=draw(st.none() | some.numbers), is_linked=is_linked,
        is_direct=is_linked and draw(st.booleans()),
    )  # fmt: skip


@st.composite
def any_study(draw: st.DrawFn) -> LinkStudy:
    links = draw(st.lists(any_link(), max_size=4))
    return dataclasses.replace(
        study(*links, slug=draw(some.slugs)), notes=tuple(draw(st.lists(some.any_text, max_size=2))),
        n_pairs=draw(st.dictionaries(some.any_text, some.counts, max_size=2)), n_passes=draw(some.counts),
    )  # fmt: skip


def test_every_study_survives(shared_engine: Engine) -> None:
    @settings(
        max_examples=15, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
    @given(any_study())
    def survive(found: LinkStudy) -> None:
        with writing(shared_engine) as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        a.catalogue(shared_engine)
        with writing(shared_engine) as session:
            store.save_link_study(session, found, run_id=a.RUN)
        with reading(shared_engine) as session:
            assert store.load_link_study(session, found.slug) == store.Kept(found, a.RUN)

    survive()


def test_links_are_found_from_either_end_strongest_first(engine: Engine) -> None:
    a.catalogue(engine)
    weak, strong = link(cause=-0.5), link(index=5, cause=-2.0)
    circuit = link(kind=LinkKind.CIRCUIT, target="tiny.refusal", cause=1.5)
    chance = link(index=5, kind=LinkKind.CIRCUIT, target="tiny.refusal", cause=9.0, linked=False)
    other = link(index=7, kind=LinkKind.CIRCUIT, target="tiny.refusal", cause=3.0, concept="cult")
    with writing(engine) as session:
        store.save_link_study(session, study(weak, strong, circuit, chance, other), run_id=a.RUN)
        store.save_link_study(session, study(link(cause=4.0), slug="tiny.again"), run_id=a.LATER_RUN)
    with reading(engine) as session:
        of_three = store.links_of_feature(session, a.feature(3))
        assert [(one.link, one.study, one.run_id) for one in of_three] == [
            (link(cause=4.0), "tiny.again", a.LATER_RUN), (circuit, "tiny.links", a.RUN), (weak, "tiny.links", a.RUN),
        ]  # fmt: skip
        assert [one.link for one in store.links_of_feature(session, a.feature(3), kinds=[LinkKind.CIRCUIT])] == [
            circuit
        ]
        assert store.links_of_feature(session, a.feature(5))[0].link == strong
        assert store.links_of_feature(session, a.feature(5), linked_only=False)[0].link == chance

        def ranked(**more: object) -> list[FeatureLink]:
            found = store.links_of_target(session, LinkKind.CIRCUIT, "tiny.refusal", model_id="tiny", **more)  # type: ignore[arg-type]
            return [one.link for one in found]

        assert ranked() == [other, circuit]
        assert ranked(linked_only=False) == [chance, other, circuit]
        assert ranked(concept="weapons") == [circuit]
        assert ranked(flow=LinkFlow.OUT_OF_FEATURE) == []
        assert ranked(limit=1) == [other]
        every = store.links_of_target(session, LinkKind.CIRCUIT, "tiny.refusal", model_id="tiny", linked_only=False)
        for n, one in enumerate(every):
            behind = LinkPlace(one.link.strength, one.study, one.place)
            assert ranked(linked_only=False, after=behind) == [later.link for later in every[n + 1 :]]
        assert store.links_of_target(session, LinkKind.CIRCUIT, "tiny.refusal", model_id="other") == []
        assert store.links_of_target(session, LinkKind.CIRCUIT, "\x00", model_id="tiny") == []
        assert [(one.slug, one.n_linked) for one in store.list_link_studies(session, sae=a.SAE)] == [
            ("tiny.again", 1), ("tiny.links", 4),
        ]  # fmt: skip
        assert store.list_link_studies(session, model_id="other") == []


def test_a_study_again_replaces_every_link(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        store.save_link_study(session, study(link(), link(index=5), link(index=6)), run_id=a.RUN)
        store.save_link_study(session, study(link(index=7)), run_id=a.LATER_RUN)
    with reading(engine) as session:
        assert store.load_link_study(session, "tiny.links") == store.Kept(study(link(index=7)), a.LATER_RUN)
        assert store.links_of_feature(session, a.feature(5), linked_only=False) == []


def test_what_cannot_be_kept_is_named(engine: Engine) -> None:
    a.catalogue(engine)
    beyond = dataclasses.replace(link(), feature=a.feature(a.WIDTH))
    stranger = dataclasses.replace(link(), feature=dataclasses.replace(a.feature(1), sae="other"))
    with writing(engine) as session, pytest.raises(BadRecord, match=r"features of .* are 0 to 15"):
        store.save_link_study(session, study(beyond), run_id=a.RUN)
    with writing(engine) as session, pytest.raises(BadRecord, match="holds links of other"):
        store.save_link_study(session, study(stranger), run_id=a.RUN)
    with writing(engine) as session, pytest.raises(NotFound, match="model `m`"):
        store.save_link_study(session, dataclasses.replace(study(), model_id="m"), run_id=a.RUN)
    with reading(engine) as session:
        for name in ("x", "\x00"):
            with pytest.raises(NotFound, match="no study of links"):
                store.load_link_study(session, name)
        with pytest.raises(BadInput, match="1 to 1000"):
            store.links_of_feature(session, a.feature(3), limit=0)


def test_a_measure_holds_where_it_is_significant_and_above_its_controls() -> None:
    found = measure(1.0)
    assert found.holds(0.05)
    assert not found.holds(0.01)
    assert not dataclasses.replace(found, control_high=1.5).holds(0.05)
    with pytest.raises(BadRecord, match="direct and not linked"):
        dataclasses.replace(link(), is_linked=False)
