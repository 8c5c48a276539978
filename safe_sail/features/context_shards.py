"""Collecting contexts in shards: what goes to a worker, what comes back, and how two of them become one.

1. A shard is some batches with their places in the corpus, whole ones: a window beside others is rounded differently.
2. A worker fills buffers of its own from a shard, which are the same whoever does it and when.
3. Buffers travel as arrays, which another process reads where they lie, without a copy.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from safe_sail.features.context_buffers import ContextBuffers
from safe_sail.features.context_state import State, buffers_of, state_of
from safe_sail.features.contexts import NumberedBatch, fill_buffers
from safe_sail.model.handle import HookedModel
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings

BatchShard = tuple[NumberedBatch, ...]


class Packed(NamedTuple):
    """Context buffers on their way between processes."""

    arrays: dict[str, np.ndarray[Any, Any]]
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What a worker does with a shard, with the model and the SAEs that it loaded once."""

    model: HookedModel
    saes: Sequence[SAEHandle]
    features: Mapping[str, Sequence[int]]
    """Per SAE slug, the features to follow."""
    settings: ContextSettings
    seed: int

    def __call__(self, shard: BatchShard) -> Packed:
        """The packed buffers of this shard's windows alone."""
        buffers = ContextBuffers(self.features, settings=self.settings, seed=self.seed)
        for _ in fill_buffers(buffers, self.model, self.saes, shard):
            pass
        return packed(buffers)


def shard_groups(
    batches: Iterable[NumberedBatch], *, shard_batches: int, group_shards: int
) -> Iterator[tuple[BatchShard, ...]]:
    """Consecutive batches in shards, consecutive shards in groups; the last ones may be smaller."""
    source = iter(batches)
    shards = iter(lambda: tuple(islice(source, shard_batches)), ())
    return iter(lambda: tuple(islice(shards, group_shards)), ())


def packed(buffers: ContextBuffers) -> Packed:
    """The buffers, ready to travel; they share their memory with what is packed."""
    tensors, info = state_of(buffers)
    return Packed({name: tensor.numpy() for name, tensor in tensors.items()}, info)


def unpacked(found: Packed) -> ContextBuffers:
    """Buffers of their own: what another process holds can only be read."""
    return buffers_of(State({name: torch.from_numpy(np.array(one)) for name, one in found.arrays.items()}, found.info))


def merge_packed(one: Packed, other: Packed) -> Packed:
    """The packed buffers of both sets of windows."""
    buffers = unpacked(one)
    buffers.merge(unpacked(other))
    return packed(buffers)
