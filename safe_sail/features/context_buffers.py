"""What one pass over a corpus keeps of every followed feature: bounded, and mergeable in any order.

1. A batch of windows comes with its firings: the positive activations alone, by window, position and feature.
2. Fine histograms count them; their sum is how often a feature fires.
3. Two top-k buffers per feature keep windows and the activations on their tokens: the largest peaks, and a uniform
   sample of the windows on which the feature fires, which is spread over the quantiles of its peaks.
4. Some windows, the same for every feature, are drawn at random and keep all their firings.

Both samples keep the windows of highest priority, a hash of seed and window number. So every result is a function of
the set of windows, and buffers of shards merge to what one pass gives, exactly. Windows are numbered by their place in
the corpus; each goes into one shard.

Memory a feature: 4 KiB of counts, and 4 bytes for each of (n_contexts + n_spread) x window activations, another 10 KiB
by the settings' defaults; token ids are kept once for each window that any feature keeps.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.features.histogram import N_FINE_BINS, fine_bins
from safe_sail.features.topk import NO_SOURCE, Moves, TopKBuffer
from safe_sail.settings import ContextSettings

_ROWS_AT_ONCE: Final = 4096
"""Features whose kept activations move together: at 20 windows of 64 tokens they are 21 MB."""


class Window(NamedTuple):
    """One piece of text."""

    source_id: str
    token_ids: "array[int]"
    """Padding left out. Four bytes each: as a tuple of integers a window takes seven times the memory."""


class Firings(NamedTuple):
    """The positive activations of one batch, one entry each, in any order."""

    windows: Int[Tensor, " n"]
    """Place of the window in the batch."""
    positions: Int[Tensor, " n"]
    """Place of the token in its window, padding left out."""
    features: Int[Tensor, " n"]
    """Place among the followed features."""
    values: Float[Tensor, " n"]
    """As float32."""


class SparseWindow(NamedTuple):
    """All firings in one window, sorted by feature and position."""

    features: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    values: Float[Tensor, " n"]


def priorities(numbers: Int[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """A number in (0, 1] for each window, uniform over windows and the same whenever the window comes."""
    # splitmix64; its top 24 bits are what a float32 can tell apart
    mixed = numbers.numpy().astype(np.uint64) + np.uint64(seed % 2**64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    share = ((mixed >> np.uint64(40)).astype(np.float64) + 1) / 2**24
    return torch.from_numpy(share.astype(np.float32))


class KeptWindows:
    """Each feature's k best windows by some value, with its activation on each of their tokens."""

    def __init__(self, n_features: int, k: int, width: int) -> None:
        self.best = TopKBuffer(n_features, k)
        self.activations: Float[Tensor, "features k seq"] = torch.zeros(n_features, k, width)

    def update(
        self,
        values: Float[Tensor, "features n"],
        numbers: Int[Tensor, " n"],
        keys: Int[Tensor, " firings"],
        firings: Firings,
    ) -> None:
        """Takes in n windows; `keys` says for each firing which entry of `values` it belongs to."""
        moves = self.best.update(values, numbers)
        if moves is None:
            return
        k, width = self.activations.shape[1:]
        self._move(moves, None)
        row, place = ((moves.origins >= k) & (self.best.sources[moves.rows] != NO_SOURCE)).nonzero(as_tuple=True)
        kept_keys = moves.rows[row] * len(numbers) + moves.origins[row, place] - k
        starts = torch.full((values.numel(),), -1)
        starts[kept_keys] = (moves.rows[row] * k + place) * width
        start = starts[keys]
        is_kept = start >= 0
        self.activations.view(-1)[start[is_kept] + firings.positions[is_kept]] = firings.values[is_kept]

    def merge(self, other: "KeptWindows") -> None:
        """Takes in what another buffer of the same features has kept."""
        self._move(self.best.merge(other.best), other.activations)

    def _move(self, moves: Moves, others: Tensor | None) -> None:
        """Lets activations follow their windows; entries from outside are zero where `others` has none."""
        k, width = self.activations.shape[1:]
        flat = self.activations.view(-1, width)
        for first in range(0, len(moves.rows), _ROWS_AT_ONCE):
            origins = moves.origins[first : first + _ROWS_AT_ONCE]
            row, place = (origins != torch.arange(k)).nonzero(as_tuple=True)
            origin, feature = origins[row, place], moves.rows[first + row]
            target, is_own = feature * k + place, origin < k
            # read before anything is written: a window may move to where another one stood
            own = flat.index_select(0, (feature * k + origin)[is_own])
            if others is None:
                flat.index_fill_(0, target[~is_own], 0.0)
            else:
                found = others.view(-1, width).index_select(0, (feature * k + origin - k)[~is_own])
                flat.index_copy_(0, target[~is_own], found)
            flat.index_copy_(0, target[is_own], own)


class FeatureBuffers:
    """What is kept of the followed features of one SAE."""

    def __init__(self, features: Sequence[int], settings: ContextSettings) -> None:
        n = len(features)
        self.features = tuple(features)
        self.counts: Int[Tensor, "features bins"] = torch.zeros(n, N_FINE_BINS, dtype=torch.long)
        self.top = KeptWindows(n, settings.n_contexts, settings.window)
        self.spread = KeptWindows(n, settings.n_spread, settings.window) if settings.n_spread else None
        self.drawn: dict[int, SparseWindow] = {}
        """By number, the windows drawn at random."""

    @property
    def maxima(self) -> Float[Tensor, " features"]:
        """The largest activation of each feature, 0 where it never fired."""
        return self.top.best.values[:, 0].clamp(min=0)

    def update(self, numbers: Int[Tensor, " n"], priority: Float[Tensor, " n"], firings: Firings) -> None:
        """Takes in the firings of n windows; the drawn ones are the caller's business."""
        n_features, n = len(self.features), len(numbers)
        flat = firings.features * N_FINE_BINS + fine_bins(firings.values)
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
        keys = firings.features * n + firings.windows
        peaks = torch.zeros(n_features * n).scatter_reduce_(0, keys, firings.values, "amax").view(n_features, n)
        self.top.update(peaks, numbers, keys, firings)
        if self.spread is not None:
            self.spread.update(priority.expand_as(peaks).where(peaks > 0, -torch.inf), numbers, keys, firings)

    def draw(self, numbers: Iterable[tuple[int, int]], firings: Firings) -> None:
        """Keeps all firings of these windows, each given as place in the batch and number."""
        for place, number in numbers:
            inside = (firings.windows == place).nonzero()[:, 0]
            keys = firings.features[inside] * self.top.activations.shape[2] + firings.positions[inside]
            chosen = inside[keys.argsort()]
            self.drawn[number] = SparseWindow(
                firings.features[chosen], firings.positions[chosen], firings.values[chosen]
            )

    def merge(self, other: "FeatureBuffers") -> None:
        """Takes in what was kept of the same features on other windows."""
        self.counts += other.counts
        self.top.merge(other.top)
        if self.spread is not None and other.spread is not None:
            self.spread.merge(other.spread)
        self.drawn |= other.drawn

    def sources(self) -> Iterator[Tensor]:
        """Numbers of the windows that features have kept, and `NO_SOURCE`."""
        for kept in (self.top, self.spread):
            if kept is not None:
                yield kept.best.sources


class ContextBuffers:
    """What is kept of the followed features of every SAE; see the head of the file."""

    def __init__(self, features: Mapping[str, Sequence[int]], *, settings: ContextSettings, seed: int) -> None:
        for slug, chosen in features.items():
            if len(set(chosen)) < len(chosen) or not chosen:
                raise BadInput(f"features of SAE {slug}: expected at least one, each once; got {len(chosen)}.")
        self.settings = settings
        self.seed = seed
        """Decides which windows are drawn."""
        self.n_windows = 0
        self.n_tokens = 0
        """Content tokens seen; special and padding tokens do not count."""
        self.windows: dict[int, Window] = {}
        """By number, every window that something refers to, and some that nothing refers to any more."""
        self.drawn = TopKBuffer(1, settings.n_random) if settings.n_random else None
        self.saes = {slug: FeatureBuffers(chosen, settings) for slug, chosen in features.items()}
        self._n_after_pruning = 0

    def update(
        self, numbers: Int[Tensor, " n"], windows: Sequence[Window], n_tokens: int, firings: Mapping[str, Firings]
    ) -> None:
        """Takes in n windows with the firings of every SAE, by slug.

        Raises:
            BadInput: a window is longer than the settings say.
        """
        longest = max(len(window.token_ids) for window in windows)
        if longest > self.settings.window:
            raise BadInput(f"expected windows of at most {self.settings.window} tokens, got {longest}; set `window`.")
        priority = priorities(numbers, self.seed)
        for slug, one in self.saes.items():
            one.update(numbers, priority, firings[slug])
        by_number = numbers.tolist()
        if self.drawn is not None:
            self.drawn.update(priority[None], numbers)
            kept = set(self.drawn.sources[0].tolist())
            new = [(place, number) for place, number in enumerate(by_number) if number in kept]
            for slug, one in self.saes.items():
                one.draw(new, firings[slug])
        self._forget_undrawn()
        self.windows.update(zip(by_number, windows, strict=True))
        self.n_windows += len(windows)
        self.n_tokens += n_tokens
        # twice what was needed last time: looking up all sources then costs a constant a window
        if len(self.windows) > 2 * self._n_after_pruning + 1024:
            self.prune()

    def merge(self, other: "ContextBuffers") -> None:
        """Takes in what was kept on other windows of the same corpus; the other buffers stay as they are.

        Raises:
            BadInput: the other buffers follow other features, or have other settings or another seed.
        """
        mine = (self.settings, self.seed, {slug: one.features for slug, one in self.saes.items()})
        if mine != (other.settings, other.seed, {slug: one.features for slug, one in other.saes.items()}):
            raise BadInput("buffers of the same features, settings and seed merge; these differ.")
        for slug, one in self.saes.items():
            one.merge(other.saes[slug])
        if self.drawn is not None and other.drawn is not None:
            self.drawn.merge(other.drawn)
        self._forget_undrawn()
        self.windows |= other.windows
        self.n_windows += other.n_windows
        self.n_tokens += other.n_tokens
        self.prune()

    def prune(self) -> None:
        """Forgets the windows that nothing refers to, and orders the rest by number."""
        needed = self.drawn_numbers
        for one in self.saes.values():
            for sources in one.sources():
                needed |= set(sources.unique().tolist())
        needed.discard(NO_SOURCE)
        self.windows = {number: self.windows[number] for number in sorted(needed)}
        self._n_after_pruning = len(self.windows)

    @property
    def drawn_numbers(self) -> set[int]:
        """Windows drawn at random."""
        return set() if self.drawn is None else set(self.drawn.sources[0].tolist()) - {NO_SOURCE}

    def _forget_undrawn(self) -> None:
        kept = self.drawn_numbers
        for one in self.saes.values():
            for number in [number for number in one.drawn if number not in kept]:
                del one.drawn[number]
