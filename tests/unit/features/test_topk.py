"""Streaming buffers against one sort of everything."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_sail.errors import BadInput
from safe_sail.features.topk import NO_SOURCE, QuantileBuffer, TopKBuffer

Rows = list[list[float]]

# few distinct values make ties common
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 2.5])


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, Rows, list[int], list[int]]:
    """k, values [source][feature], source ids (repeats allowed), and where to cut the stream."""
    n, n_features = draw(st.integers(0, 14)), draw(st.integers(1, 3))
    values = [[draw(VALUES) for _ in range(n_features)] for _ in range(n)]
    ids = draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return draw(st.integers(1, 6)), values, ids, [0, *cuts, n]


def one_sort(k: int, values: Rows, ids: list[int], feature: int) -> list[tuple[float, int]]:
    best: dict[int, float] = {}
    for row, source in zip(values, ids, strict=True):
        if row[feature] > 0:
            best[source] = max(best.get(source, 0), row[feature])
    return sorted(((value, source) for source, value in best.items()), key=lambda entry: (-entry[0], entry[1]))[:k]


def entries(buffer: TopKBuffer, feature: int) -> list[tuple[float, int]]:
    pairs = zip(buffer.values[feature].tolist(), buffer.sources[feature].tolist(), strict=True)
    return [(value, source) for value, source in pairs if source != NO_SOURCE]


def part(values: Rows, ids: list[int], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(values[start:stop]).T, torch.tensor(ids[start:stop])


@settings(deadline=None, max_examples=150)
@given(pieces())
def test_streaming_top_k_equals_one_sort(case: tuple[int, Rows, list[int], list[int]]) -> None:
    k, values, ids, cuts = case
    n_features = len(values[0]) if values else 1
    streamed, merged = TopKBuffer(n_features, k), TopKBuffer(n_features, k)
    for start, stop in pairwise(cuts):
        if start == stop:
            continue
        streamed.update(*part(values, ids, start, stop))
        shard = TopKBuffer(n_features, k)
        shard.update(*part(values, ids, start, stop))
        merged.merge(shard)

    for feature in range(n_features):
        expected = one_sort(k, values, ids, feature) if values else []
        assert entries(streamed, feature) == expected
        assert entries(merged, feature) == expected
        assert int(streamed.counts[feature]) == len(expected)


def test_buffer_keeps_its_size_and_its_input() -> None:
    buffer, generator = TopKBuffer(5, 3), torch.Generator().manual_seed(0)
    for step in range(20):
        values = torch.randn(5, 8, generator=generator)
        before = values.clone()
        buffer.update(values, torch.arange(8) + 8 * step)
        assert torch.equal(values, before)

    assert buffer.values.shape == buffer.sources.shape == (5, 3)


def test_floor_keeps_negative_values_when_asked() -> None:
    buffer = TopKBuffer(1, 2, above=-torch.inf)
    buffer.update(torch.tensor([[-3.0, -1.0, -2.0]]), torch.tensor([0, 1, 2]))

    assert entries(buffer, 0) == [(-1.0, 1), (-2.0, 2)]


@pytest.mark.parametrize(
    ("values", "sources"),
    [
        (torch.zeros(3, 2), torch.arange(2)),
        (torch.zeros(2, 3), torch.arange(2)),
        (torch.tensor([[1.0], [float("nan")]]), torch.arange(1)),
        (torch.ones(2, 1), torch.tensor([-1])),
    ],
)
def test_update_that_does_not_fit_is_refused(values: torch.Tensor, sources: torch.Tensor) -> None:
    with pytest.raises(BadInput):
        TopKBuffer(2, 3).update(values, sources)


@pytest.mark.parametrize(
    "merge",
    [
        lambda: TopKBuffer(2, 3).merge(TopKBuffer(2, 4)),
        lambda: TopKBuffer(2, 3).merge(TopKBuffer(2, 3, above=1.0)),
        lambda: QuantileBuffer(2, 3).merge(QuantileBuffer(3, 3)),
        lambda: TopKBuffer(0, 1),
        lambda: QuantileBuffer(1, 1),
    ],
)
def test_buffers_that_do_not_fit_are_refused(merge: Callable[[], object]) -> None:
    with pytest.raises(BadInput):
        merge()


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=60),
    st.integers(2, 20),
    st.floats(0.0, 1.0),
    st.integers(1, 20),
)
def test_tail_quantiles_equal_numpy_on_everything(data: list[int], k: int, q: float, piece: int) -> None:
    values = torch.tensor([data, [-x * x for x in data]], dtype=torch.float32)
    streamed, merged = QuantileBuffer(2, k), QuantileBuffer(2, k)
    for start in range(0, len(data), piece):
        streamed.update(values[:, start : start + piece])
        shard = QuantileBuffer(2, k)
        shard.update(values[:, start : start + piece])
        merged.merge(shard)
    rank = q * len(data)
    if rank < 1 or k < rank < len(data) - k + 1:
        with pytest.raises(BadInput, match="order statistic"):
            streamed.quantile(q)
        return

    expected = np.quantile(values.double().numpy(), q, axis=1, method="interpolated_inverted_cdf")

    # ranks within 1e-9 n of an integer are taken as that integer
    np.testing.assert_allclose(streamed.quantile(q).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(merged.quantile(q).numpy(), expected, atol=1e-5)
    assert streamed.largest.shape[1] <= k


def test_quantile_of_a_round_rank_is_that_order_statistic() -> None:
    buffer = QuantileBuffer(1, 5)
    buffer.update(torch.arange(1000.0)[None])

    assert buffer.quantile(0.999).item() == 998.0
    assert buffer.quantile(1.0).item() == 999.0
    assert buffer.quantile(0.005).item() == 4.0
    assert buffer.quantile(0.996).item() == 995.0
