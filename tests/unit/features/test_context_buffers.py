"""Context buffers against a loop that keeps everything, and against themselves over shards and in other orders."""

from array import array
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_sail.errors import BadInput
from safe_sail.features.context_buffers import ContextBuffers, Firings, Window, priorities
from safe_sail.features.context_state import State, buffers_of, state_of
from safe_sail.features.histogram import N_FINE_BINS, fine_bins
from safe_sail.features.topk import NO_SOURCE
from safe_sail.settings import ContextSettings

N_FEATURES, WIDTH, SEED = 4, 5, 7
SETTINGS = ContextSettings(n_contexts=3, n_random=4, n_spread=2, window=WIDTH)
FEATURES = {"a": [9, 2, 5, 0], "b": [1, 3, 4, 8]}


class Corpus(NamedTuple):
    """Windows of 1 to 5 tokens and everything that fires in them; few distinct values, so that ties are common."""

    lengths: list[int]
    acts: dict[str, torch.Tensor]

    def window(self, number: int) -> Window:
        return Window(f"doc#{number}", array("i", range(number, number + self.lengths[number])))

    def put(self, buffers: ContextBuffers, first: int, stop: int) -> None:
        firings = {}
        for slug, acts in self.acts.items():
            windows, positions, features = (acts[first:stop] > 0).nonzero(as_tuple=True)
            values = acts[first:stop][windows, positions, features]
            shuffle = torch.randperm(len(values), generator=torch.Generator().manual_seed(first))
            firings[slug] = Firings(*(part[shuffle] for part in (windows, positions, features, values)))
        windows = [self.window(number) for number in range(first, stop)]
        buffers.update(torch.arange(first, stop), windows, sum(self.lengths[first:stop]), firings)


def corpus(n: int, seed: int) -> Corpus:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, WIDTH + 1, (n,), generator=generator).tolist()
    acts = {}
    for slug in FEATURES:
        values = torch.tensor([0.0, 0.0, 0.0, 0.25, 0.5, 3.0])
        acts[slug] = values[torch.randint(0, 6, (n, WIDTH, N_FEATURES), generator=generator)]
        acts[slug][:, :, -1] = 0  # one feature never fires
        for number, length in enumerate(lengths):
            acts[slug][number, length:] = 0
    return Corpus(lengths, acts)


def empty() -> ContextBuffers:
    return ContextBuffers(FEATURES, settings=SETTINGS, seed=SEED)


def assert_same(found: State, expected: State) -> None:
    assert found.info == expected.info
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@st.composite
def sharded(draw: st.DrawFn) -> tuple[Corpus, list[tuple[int, int]], list[int], list[int]]:
    """A corpus, its batches, the shard of each, and the order in which shards merge; batches come in any order."""
    texts = corpus(draw(st.integers(1, 40)), draw(st.integers(0, 1000)))
    n = len(texts.lengths)
    cuts = [0, *sorted(draw(st.sets(st.integers(1, n), max_size=5)) - {n}), n]
    batches = draw(st.permutations(list(pairwise(cuts))))
    shards = draw(st.lists(st.integers(0, 2), min_size=len(batches), max_size=len(batches)))
    return texts, list(batches), shards, draw(st.permutations([0, 1, 2]))


@settings(deadline=None, max_examples=150)
@given(sharded())
def test_any_sharding_and_order_give_the_same(case: tuple[Corpus, list[tuple[int, int]], list[int], list[int]]):
    texts, batches, shards, order = case
    whole = empty()
    texts.put(whole, 0, len(texts.lengths))
    parts = [empty(), empty(), empty()]
    for (first, stop), shard in zip(batches, shards, strict=True):
        texts.put(parts[shard], first, stop)
    merged = empty()
    for shard in order:
        merged.merge(parts[shard])
    assert_same(state_of(merged), state_of(whole))
    assert_same(state_of(buffers_of(state_of(whole))), state_of(whole))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_buffers_hold_what_a_loop_over_everything_finds(n: int, seed: int):
    texts, buffers = corpus(n, seed), empty()
    for first in range(0, n, 7):
        texts.put(buffers, first, min(first + 7, n))
    priority = priorities(torch.arange(n), SEED).tolist()
    drawn = sorted(range(n), key=lambda i: (-priority[i], i))[: SETTINGS.n_random]
    assert buffers.drawn_numbers == set(drawn)
    assert buffers.n_tokens == sum(texts.lengths)
    for slug, one in buffers.saes.items():
        assert set(one.drawn) == set(drawn)
        for feature in range(N_FEATURES):
            acts = texts.acts[slug][:, :, feature]
            positive = acts[acts > 0]
            assert torch.equal(one.counts[feature], torch.bincount(fine_bins(positive), minlength=N_FINE_BINS))
            assert float(one.maxima[feature]) == float(acts.max())
            peaks = acts.amax(dim=1).tolist()
            fires = [i for i in range(n) if peaks[i] > 0]
            best = sorted(fires, key=lambda i: (-peaks[i], i))[: SETTINGS.n_contexts]
            spread = sorted(fires, key=lambda i: (-priority[i], i))[: SETTINGS.n_spread]
            assert one.spread is not None
            for kept, expected in ((one.top, best), (one.spread, spread)):
                sources = [s for s in kept.best.sources[feature].tolist() if s != NO_SOURCE]
                assert sources == expected
                assert torch.equal(kept.activations[feature, : len(expected)], acts[expected])
                assert not kept.activations[feature, len(expected) :].any()
                assert all(buffers.windows[i] == texts.window(i) for i in expected)
            for number in drawn:
                window = one.drawn[number]
                inside = window.features == feature
                dense = torch.zeros(WIDTH)
                dense[window.positions[inside]] = window.values[inside]
                assert torch.equal(dense, acts[number])


def test_windows_that_nothing_needs_are_forgotten():
    texts = corpus(6000, 0)
    buffers = empty()
    for first in range(0, 6000, 50):
        texts.put(buffers, first, first + 50)
        assert len(buffers.windows) <= 1200
    buffers.prune()
    # 8 features with 3 top and 2 spread windows each, and 4 drawn ones
    assert len(buffers.windows) <= 8 * 5 + 4


def test_priorities_are_uniform_and_change_with_the_seed():
    found = priorities(torch.arange(100_000), 1)
    assert float(found.min()) > 0
    assert float(found.max()) <= 1
    # the spread of the mean of 100,000 uniform numbers is 0.0009
    assert float(found.double().mean()) == pytest.approx(0.5, abs=0.005)
    assert torch.equal(found[5:9], priorities(torch.arange(5, 9), 1))
    other = priorities(torch.arange(100_000), 2)
    assert abs(float(torch.corrcoef(torch.stack([found, other]).double())[0, 1])) < 0.02


def test_spread_windows_are_a_fair_sample_of_the_firing_ones():
    texts = corpus(400, 3)
    times_chosen = torch.zeros(400)
    for seed in range(300):
        buffers = ContextBuffers(FEATURES, settings=SETTINGS, seed=seed)
        texts.put(buffers, 0, 400)
        spread = buffers.saes["a"].spread
        assert spread is not None
        times_chosen[spread.best.sources[0]] += 1
    fires = texts.acts["a"][:, :, 0].amax(dim=1) > 0
    assert not times_chosen[~fires].any()
    strong = texts.acts["a"][:, :, 0].amax(dim=1) == 3.0
    share = float(times_chosen[strong].sum() / times_chosen.sum())
    # 600 draws: three standard deviations are 0.06
    assert share == pytest.approx(float(strong.sum() / fires.sum()), abs=0.06)


def test_buffers_of_other_jobs_do_not_merge():
    for other in (
        ContextBuffers(FEATURES, settings=SETTINGS, seed=SEED + 1),
        ContextBuffers({"a": [1]}, settings=SETTINGS, seed=SEED),
        ContextBuffers(FEATURES, settings=ContextSettings(n_contexts=4), seed=SEED),
    ):
        with pytest.raises(BadInput, match="differ"):
            empty().merge(other)


def test_windows_longer_than_the_settings_are_refused_before_anything_is_kept():
    buffers = empty()
    nothing = {slug: Firings(*(torch.empty(0, dtype=torch.long),) * 3, torch.empty(0)) for slug in FEATURES}
    with pytest.raises(BadInput, match="at most 5 tokens, got 6"):
        buffers.update(torch.arange(1), [Window("x", array("i", [1] * 6))], 6, nothing)
    assert_same(state_of(buffers), state_of(empty()))


def test_features_are_named_once():
    with pytest.raises(BadInput, match="each once"):
        ContextBuffers({"a": [1, 1]}, settings=SETTINGS, seed=0)


def test_a_state_with_a_part_missing_is_refused():
    state = state_of(empty())
    del state.tensors["0.top.values"]
    with pytest.raises(BadInput, match="Collect anew"):
        buffers_of(state)


def test_a_drawn_window_on_which_nothing_fires_survives_a_state():
    silent = corpus(3, seed=0)
    for acts in silent.acts.values():
        acts.zero_()
    buffers = empty()
    silent.put(buffers, 0, 3)
    found = buffers_of(state_of(buffers))
    assert found.drawn_numbers == {0, 1, 2}
    assert all(set(one.drawn) == {0, 1, 2} for one in found.saes.values())
