"""Streaming buffers of order statistics, per feature, in bounded memory; two buffers merge into one.

1. TopKBuffer keeps each feature's k best sources (document windows).
2. QuantileBuffer keeps each feature's k largest and k smallest values, for quantiles far out in the tails.

Both give exactly what one sort of everything would give, in whatever order and pieces the values come.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from safe_sail.errors import BadInput

NO_SOURCE: Final = -1
"""Stands where a feature has fewer than k entries."""
_MAX_SOURCE: Final = 2**31 - 1


class Moves(NamedTuple):
    """Where the entries of the features that changed came from, so that what belongs to them can follow."""

    rows: Int[Tensor, " rows"]
    """Features that may have changed."""
    origins: Int[Tensor, "rows k"]
    """Below k: the feature's own place before; k + j: column j of what came in. Empty places name themselves."""


class TopKBuffer:
    """Each feature's k largest values above a floor and where they come from, one entry a source.

    Order: value descending (ties: source ascending). A source that comes twice counts with its larger value. Empty
    places hold minus infinity and `NO_SOURCE`.
    """

    def __init__(self, n_features: int, k: int, *, above: float = 0.0, device: torch.device | str = "cpu") -> None:
        if n_features < 1 or k < 1:
            raise BadInput(f"a buffer needs features and places; got n_features={n_features}, k={k}.")
        self.k = k
        self.above = above
        """Values must exceed it; 0 keeps the sources on which a feature fires."""
        self.values: Float[Tensor, "features k"] = torch.full((n_features, k), -torch.inf, device=device)
        self.sources: Int[Tensor, "features k"] = torch.full((n_features, k), NO_SOURCE, device=device)
        self._newest = NO_SOURCE  # no source in the buffer is above it

    @property
    def counts(self) -> Int[Tensor, " features"]:
        """Filled places per feature."""
        return (self.sources != NO_SOURCE).sum(dim=1)

    def update(self, values: Float[Tensor, "features n"], sources: Int[Tensor, " n"]) -> Moves | None:
        """Takes in n sources, each with one value per feature; source ids count from 0 to 2^31 - 1.

        None where nothing can have changed.

        Raises:
            BadInput: the shapes differ from the buffer's, a value is NaN, or a source id is out of range.
        """
        n_features = self.values.shape[0]
        if values.shape != (n_features, sources.shape[0]):
            raise BadInput(
                f"expected values [{n_features} features, {sources.shape[0]} sources], got {list(values.shape)}."
            )
        if sources.numel() == 0:
            return None
        first, last = int(sources.min()), int(sources.max())
        if first < 0 or last > _MAX_SOURCE or bool(values.isnan().any()):
            raise BadInput(
                f"source ids count from 0 to {_MAX_SOURCE} and values are numbers; got ids {first} to {last} and "
                f"{int(values.isnan().sum())} NaN."
            )
        are_new = first > self._newest and sources.unique().numel() == sources.numel()
        self._newest = max(self._newest, last)
        # most features fire on few sources: only rows that can change are sorted
        best = values.amax(dim=1).to(self.values.dtype)
        rows = ((best > self.above) & (best >= self.values[:, -1])).nonzero()[:, 0]
        if rows.numel() == 0:
            return None
        new_values = values[rows].to(self.values.dtype)
        new_sources = sources.to(self.sources.device).expand(rows.numel(), -1)
        insert = self._insert_new if are_new else self._insert
        return insert(rows, new_values.where(new_values > self.above, -torch.inf), new_sources)

    def merge(self, other: "TopKBuffer") -> Moves:
        """Takes in what another buffer of the same features has kept.

        Raises:
            BadInput: the other buffer has another number of features, places or floor.
        """
        if (self.values.shape, self.above) != (other.values.shape, other.above):
            raise BadInput(
                f"buffers of one shape and floor merge; got {list(self.values.shape)} above {self.above} and "
                f"{list(other.values.shape)} above {other.above}."
            )
        rows = torch.arange(self.values.shape[0], device=self.values.device)
        self._newest = max(self._newest, int(other.sources.max()))
        return self._insert(rows, other.values.to(self.values.device), other.sources.to(self.sources.device))

    def restore(self, values: Float[Tensor, "features k"], sources: Int[Tensor, "features k"]) -> None:
        """Takes on what a buffer of this shape held when it was written down."""
        if (values.shape, sources.shape) != (self.values.shape, self.sources.shape):
            raise BadInput(f"expected a buffer {list(self.values.shape)}, got {list(values.shape)}.")
        self.values, self.sources, self._newest = values, sources, int(sources.max())

    def _insert_new(self, rows: Tensor, new_values: Tensor, new_sources: Tensor) -> Moves:
        """As `_insert`, for sources that cannot repeat: one selection instead of two sorts, a third of the time."""
        values = torch.cat([self.values[rows], new_values], dim=1)
        sources = torch.cat([self.sources[rows], new_sources], dim=1)
        # (value descending, source ascending) in one integer: the bits of a float32 order as the number does once
        # those of negative numbers are turned round; adding 0 makes a negative zero positive
        bits = (values + 0.0).view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        keys = (ordered.long() << 31) + (_MAX_SOURCE - sources)
        keys.masked_fill_(values == -torch.inf, torch.iinfo(torch.int64).min)
        origins = keys.topk(self.k, dim=1).indices
        return self._keep(rows, values.gather(1, origins), sources.gather(1, origins), origins)

    def _insert(self, rows: Tensor, new_values: Tensor, new_sources: Tensor) -> Moves:
        values = torch.cat([self.values[rows], new_values], dim=1)
        sources = torch.cat([self.sources[rows], new_sources], dim=1)
        # a stable sort by source, then by value, orders by (value descending, source ascending)
        sources, origins = sources.sort(dim=1, stable=True)
        values, order = values.gather(1, origins).sort(dim=1, descending=True, stable=True)
        sources, origins = sources.gather(1, order), origins.gather(1, order)
        repeated = _appeared_before(sources)
        if bool((repeated & (values > -torch.inf)).any()):
            values, order = values.where(~repeated, -torch.inf).sort(dim=1, descending=True, stable=True)
            sources, origins = sources.gather(1, order), origins.gather(1, order)
        return self._keep(rows, values[:, : self.k], sources[:, : self.k], origins[:, : self.k])

    def _keep(self, rows: Tensor, values: Tensor, sources: Tensor, origins: Tensor) -> Moves:
        is_filled = values > -torch.inf
        self.values[rows] = values
        self.sources[rows] = sources.where(is_filled, NO_SOURCE)
        return Moves(rows, origins.where(is_filled, torch.arange(self.k, device=origins.device)))


def _appeared_before(sources: Int[Tensor, "rows n"]) -> Tensor:
    """True where a row holds the same source in an earlier column."""
    ascending, order = sources.sort(dim=1, stable=True)
    same = torch.zeros_like(sources, dtype=torch.bool)
    same[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
    return torch.zeros_like(same).scatter(1, order, same)


class QuantileBuffer:
    """Each feature's k largest and k smallest values, and how many values there were.

    Memory is 8 k bytes a feature in float32, whatever the number of values.
    """

    def __init__(self, n_features: int, k: int, *, device: torch.device | str = "cpu") -> None:
        if n_features < 1 or k < 2:
            raise BadInput(f"a buffer needs features and two places; got n_features={n_features}, k={k}.")
        self.k = k
        self.n = 0
        """Values seen per feature."""
        self.largest: Float[Tensor, "features kept"] = torch.empty((n_features, 0), device=device)
        """Descending."""
        self.smallest: Float[Tensor, "features kept"] = torch.empty((n_features, 0), device=device)
        """Ascending."""

    def update(self, values: Float[Tensor, "features n"]) -> None:
        """Takes in n values per feature.

        Raises:
            BadInput: the number of features differs, or a value is NaN.
        """
        if values.ndim != 2 or values.shape[0] != self.largest.shape[0] or bool(values.isnan().any()):
            raise BadInput(
                f"expected values [{self.largest.shape[0]} features, n] without NaN, got {list(values.shape)} with "
                f"{int(values.isnan().sum())} NaN."
            )
        values = values.to(self.largest.dtype)
        self._keep(values, values, values.shape[1])

    def merge(self, other: "QuantileBuffer") -> None:
        """Takes in what another buffer of the same features has kept.

        Raises:
            BadInput: the other buffer has another number of features or places.
        """
        if (self.k, self.largest.shape[0]) != (other.k, other.largest.shape[0]):
            raise BadInput(
                f"buffers of one size merge; got {self.largest.shape[0]} features with k={self.k} and "
                f"{other.largest.shape[0]} with k={other.k}."
            )
        self._keep(other.largest.to(self.largest.device), other.smallest.to(self.smallest.device), other.n)

    def _keep(self, high: Tensor, low: Tensor, n: int) -> None:
        self.n += n
        kept = min(self.k, self.n)
        self.largest = torch.cat([self.largest, high], dim=1).topk(kept, dim=1).values
        self.smallest = torch.cat([self.smallest, low], dim=1).topk(kept, dim=1, largest=False).values

    def quantile(self, q: float) -> Float64[Tensor, " features"]:
        """The q-quantile of each feature, interpolated linearly between order statistics r with p_r = r / n, r from 1.

        Raises:
            BadInput: q lies between the two buffers, or below the first order statistic.

        Source: Safe-SAIL release, `quantile_utils.py`, arXiv 2509.18127; definition 4 of Hyndman and Fan 1996.
        """
        rank = q * self.n
        # q = 0.999 times n is rarely the integer it stands for; a rank this close to one is that one
        rank = round(rank) if abs(rank - round(rank)) < 1e-9 * max(self.n, 1) else rank
        kept = self.largest.shape[1]
        if not (kept and 1 <= rank <= self.n and (rank <= kept or rank >= self.n - kept + 1)):
            raise BadInput(
                f"quantile {q} of {self.n} values is order statistic {rank:.1f}; kept are the first and the last "
                f"{kept}. Make the buffer larger (k={self.k})."
            )
        below = int(rank)
        low = self._order_statistic(below, from_below=rank <= kept)
        if rank == below:
            return low
        high = self._order_statistic(below + 1, from_below=rank <= kept)
        return low + (rank - below) * (high - low)

    def _order_statistic(self, r: int, *, from_below: bool) -> Float64[Tensor, " features"]:
        """The r-th smallest value, r from 1."""
        return (self.smallest[:, r - 1] if from_below else self.largest[:, self.n - r]).double()
