"""Directions, searches and evaluations survive the store whole, on both databases, and replace each other by slug."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete

from db import store
from db.engine import reading, writing
from db.store.whole import from_json, to_json
from db.tables import Base
from safe_sail.errors import DatabaseUnreachable, NotFound
from safe_sail.records import (
    Direction,
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    Estimate,
    FeatureId,
    ReplyShares,
)
from safe_sail.sites import Site
from tests.db import builders as a
from tests.db import strategies as some

VECTORS = st.integers(1, 3).flatmap(
    lambda width: st.lists(
        st.tuples(*[some.numbers] * width).filter(any), min_size=1, max_size=3
    ).map(tuple)
)  # fmt: skip


def any_record(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type; records with rules of their own are built to keep them."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of(*[st.none() if one is types.NoneType else any_record(one) for one in inner])
    if origin is tuple:
        if inner[1:] == (Ellipsis,):
            return st.lists(any_record(inner[0]), max_size=2).map(tuple)
        return st.tuples(*map(any_record, inner))
    if origin is Mapping:
        return st.dictionaries(some.any_text, any_record(inner[1]), max_size=2)
    if kind is Estimate:
        return some.estimates()
    if kind is Site:
        return some.sites
    if dataclasses.is_dataclass(kind):
        return fields_of(kind).map(lambda values: kind(**values))
    return {str: some.any_text, float: some.numbers, int: st.integers(-(2**63), 2**63 - 1), bool: st.booleans()}[kind]


def fields_of(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: any_record(hint) for name, hint in get_type_hints(kind).items()}
    names = fields.keys()
    if "slug" in names:
        fields["slug"] = some.slugs
    if "model_id" in names:
        fields["model_id"] = st.just("tiny")
    if "position" in names:
        fields["position"] = st.integers(-9, -1)
    if "layer" in names:
        fields["layer"] = st.integers(0, 99)
    if "norm" in names:
        fields["norm"] = st.floats(0, 1e6)
    if kind is Direction:
        fields["vectors"] = VECTORS
        # a column of its own: NUL and half characters are refused there, and hypothesis draws them in some orders only
        fields["estimator"] = some.names
    drawn = st.fixed_dictionaries(fields)
    if kind is ReplyShares:
        third = Estimate(value=1 / 3, low=0.0, high=1.0, n=3)
        drawn = drawn.map(lambda values: values | dict.fromkeys(("refusal", "compliance", "degenerate"), third))
    if kind is FeatureId:
        return st.fixed_dictionaries({"sae": some.slugs, "index": st.integers(0, 2**40)})
    if "confirmed" in names:
        drawn = drawn.map(lambda values: values | {"reason": "" if values["confirmed"] is not None else "none passed"})
    if kind is DirectionSearch:
        drawn = drawn.map(with_outcome)
    return drawn


def with_outcome(values: dict[str, Any]) -> dict[str, Any]:
    direction, added = values["direction"], values["added"]
    outcome = "none" if direction is None else "single" if direction.rank == 1 else "subspace"
    if added is not None:
        added = dataclasses.replace(added, slug=values["slug"][:200] + ".added")
    if direction is not None:
        direction = dataclasses.replace(direction, slug=values["slug"])
    return values | {"outcome": outcome, "direction": direction, "added": added}


searches = any_record(DirectionSearch)
few = settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def start(engine: Engine) -> None:
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    with writing(engine) as session:
        store.save_run(session, a.run())
        store.save_model(session, a.model(), run_id=a.RUN)


def direction(slug: str = "tiny.refusal", first: float = 1.0) -> Direction:
    return Direction(
        slug=slug,
        model_id="tiny",
        site=Site.parse("resid_pre.2"),
        position=-1,
        estimator="raw",
        vectors=((first, 0.5),),
    )


def search(found: Direction | None) -> DirectionSearch:
    return DirectionSearch(
        slug="tiny.refusal", model_id="tiny", outcome="none" if found is None else "single", direction=found,
        added=None, coefficient=1.0, induced=None, reasons=("raw: nothing",), notes=(), prompt_prefix="",
        post_instruction=("\n",), refusal_tokens=(), n_prompts={"harmful train": 3}, selections=(), curves={},
    )  # fmt: skip


def evaluation() -> DirectionEvaluation:
    return DirectionEvaluation(
        direction="tiny.refusal", replies=(), utility=(), kl=a.estimate(0.5), first_token={}, weights_gap=None,
        weights_note="a post-norm",
    )  # fmt: skip


def read() -> DirectionReading:
    return DirectionReading(direction="tiny.refusal", cosines={"harmful": (a.estimate(0.25), a.estimate(0.5))}, saes=())


@few
@given(any_record(DirectionEvaluation), any_record(DirectionReading))
def test_every_evaluation_and_reading_is_the_same_as_text(judged: DirectionEvaluation, seen: DirectionReading) -> None:
    assert from_json(DirectionEvaluation, to_json(judged)) == judged
    assert from_json(DirectionReading, to_json(seen)) == seen


def test_every_search_survives(shared_engine: Engine) -> None:
    @few
    @given(searches)
    def survive(found: DirectionSearch) -> None:
        start(shared_engine)
        with writing(shared_engine) as session:
            store.save_direction_search(session, found, run_id=a.RUN)
        with reading(shared_engine) as session:
            assert store.load_direction_search(session, found.slug) == store.Kept(found, a.RUN)
            assert store.list_direction_searches(session, model_id="tiny") == [store.Kept(found, a.RUN)]
            for one in (found.direction, found.added):
                if one is not None:
                    assert store.load_direction(session, one.slug) == store.Kept(one, a.RUN)

    survive()


def test_an_evaluation_survives_and_goes_with_the_direction_it_judged(engine: Engine) -> None:
    start(engine)
    with writing(engine) as session:
        store.save_direction_search(session, search(direction()), run_id=a.RUN)
        store.save_direction_evaluation(session, evaluation(), run_id=a.RUN)
        store.save_direction_reading(session, read(), run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_direction_evaluation(session, "tiny.refusal") == store.Kept(evaluation(), a.RUN)
        assert store.load_direction_reading(session, "tiny.refusal") == store.Kept(read(), a.RUN)
    with writing(engine) as session:
        store.save_direction_search(session, search(direction(first=2.0)), run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_direction_evaluation(session, "tiny.refusal") is None
        assert store.load_direction_reading(session, "tiny.refusal") is None
        assert store.load_direction(session, "tiny.refusal").record.vectors == ((2.0, 0.5),)


def test_a_search_that_now_finds_nothing_points_at_no_direction(engine: Engine) -> None:
    start(engine)
    with writing(engine) as session:
        store.save_direction_search(session, search(direction()), run_id=a.RUN)
        store.save_direction_search(session, search(None), run_id=a.RUN)
    with reading(engine) as session:
        assert store.load_direction_search(session, "tiny.refusal").record.direction is None
        assert store.list_direction_searches(session, model_id="other") == []


def test_what_is_not_kept_is_named(engine: Engine) -> None:
    start(engine)
    with reading(engine) as session:
        for load in (store.load_direction, store.load_direction_search, store.load_direction_evaluation):
            with pytest.raises(NotFound, match=r"no .*direction is called `x`"):
                load(session, "x")
    with writing(engine) as session, pytest.raises(NotFound, match="no direction is called"):
        store.save_direction_evaluation(session, evaluation(), run_id=a.RUN)
    with writing(engine) as session, pytest.raises(NotFound, match="model `other`"):
        store.save_direction_search(session, dataclasses.replace(search(None), model_id="other"), run_id=a.RUN)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"slug": 3}', to_json(search(direction())).replace("-1", '"-1"')])
def test_damaged_text_is_said(text: str) -> None:
    with pytest.raises(DatabaseUnreachable, match="a kept DirectionSearch"):
        from_json(DirectionSearch, text)
