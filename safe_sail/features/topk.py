"""Streaming buffers of order statistics, per feature, in bounded memory; two buffers merge into one.

1. TopKBuffer keeps each feature's k best sources (document windows).
2. QuantileBuffer keeps each feature's k largest and k smallest values, for quantiles far out in the tails.

Both give exactly what one sort of everything would give, in whatever order and pieces the values come.
"""

from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from safe_sail.errors import BadInput

NO_SOURCE: Final = -1
"""Stands where a feature has fewer than k entries."""


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

    @property
    def counts(self) -> Int[Tensor, " features"]:
        """Filled places per feature."""
        return (self.sources != NO_SOURCE).sum(dim=1)

    def update(self, values: Float[Tensor, "features n"], sources: Int[Tensor, " n"]) -> None:
        """Takes in n sources, each with one value per feature; source ids count from 0.

        Raises:
            BadInput: the shapes differ from the buffer's, a value is NaN, or a source id is negative.
        """
        n_features = self.values.shape[0]
        if values.shape != (n_features, sources.shape[0]):
            raise BadInput(
                f"expected values [{n_features} features, {sources.shape[0]} sources], got {list(values.shape)}."
            )
        if sources.numel() == 0:
            return
        if int(sources.min()) < 0 or bool(values.isnan().any()):
            raise BadInput(
                f"source ids count from 0 and values are numbers; got the id {int(sources.min())} and "
                f"{int(values.isnan().sum())} NaN."
            )
        # most features fire on few sources: only rows that can change are sorted
        best = values.amax(dim=1).to(self.values.dtype)
        rows = ((best > self.above) & (best >= self.values[:, -1])).nonzero()[:, 0]
        if rows.numel():
            new_values = values[rows].to(self.values.dtype)
            new_sources = sources.to(self.sources.device).expand(rows.numel(), -1)
            self._insert(rows, new_values.where(new_values > self.above, -torch.inf), new_sources)

    def merge(self, other: "TopKBuffer") -> None:
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
        self._insert(rows, other.values.to(self.values.device), other.sources.to(self.sources.device))

    def _insert(self, rows: Tensor, new_values: Tensor, new_sources: Tensor) -> None:
        values = torch.cat([self.values[rows], new_values], dim=1)
        sources = torch.cat([self.sources[rows], new_sources], dim=1)
        # a stable sort by source, then by value, orders by (value descending, source ascending)
        sources, order = sources.sort(dim=1, stable=True)
        values = values.gather(1, order)
        values, order = values.sort(dim=1, descending=True, stable=True)
        sources = sources.gather(1, order)
        repeated = _appeared_before(sources)
        if bool((repeated & (values > -torch.inf)).any()):
            values = values.where(~repeated, -torch.inf)
            values, order = values.sort(dim=1, descending=True, stable=True)
            sources = sources.gather(1, order)
        values, sources = values[:, : self.k], sources[:, : self.k]
        self.values[rows] = values
        self.sources[rows] = sources.where(values > -torch.inf, NO_SOURCE)


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
