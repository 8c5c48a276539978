"""How `safe-sail collect-contexts` runs: here or on Ray workers, saved now and then, continued after a kill."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never

import torch

from safe_sail.data.saved_state import load_state, save_state
from safe_sail.errors import BadInput
from safe_sail.execution.executors import RayExecutor
from safe_sail.features.context_buffers import ContextBuffers
from safe_sail.features.context_shards import BatchShard, ShardTask, merge_packed, shard_groups, unpacked
from safe_sail.features.context_state import State, buffers_of, state_of
from safe_sail.features.contexts import fill_buffers, numbered
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import ContextSettings
from scripts.progress import tqdm
from scripts.subjects import load_handle, load_saes

_SHARD_BATCHES: Final = 16
"""Batches in one shard: many forward passes beside one message and one merge of buffers."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What a worker loads: the words of the command line, which mean the same on every machine of the cluster."""

    model: str | None
    model_id: str | None
    sae: tuple[str, ...] | None
    device: str
    dtype: str
    features: Mapping[str, Sequence[int]]
    settings: ContextSettings
    seed: int
    threads: int
    """Another number of threads may round a product in another order."""

    def __call__(self) -> ShardTask:
        """The task of the run, on this machine."""
        torch.set_num_threads(self.threads)
        model = load_handle(self.model, self.model_id, device=self.device, dtype=self.dtype)
        saes = load_saes(self.sae, model, device=self.device)
        return ShardTask(model=model, saes=saes, features=self.features, settings=self.settings, seed=self.seed)


class StateFolder:
    """Where a run keeps its buffers; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, job: dict[str, Any], *, save_every: int) -> None:
        self.folder, self.job = folder, job
        self.save_every = save_every
        """Windows between two saves."""

    def load(self) -> ContextBuffers | None:
        """The buffers that a killed run of the same job has saved.

        Raises:
            BadInput: the state is of another run.
        """
        saved = None if self.folder is None else load_state(self.folder)
        if saved is None:
            return None
        before = saved.info.get("job", {})
        differing = [name for name in self.job if before.get(name) != self.job[name]]
        if differing:
            raise BadInput(
                f"the state in `{self.folder}` belongs to another run: {', '.join(differing)} differ. Give another "
                f"folder."
            )
        return buffers_of(State(saved.tensors, saved.info))

    def save(self, buffers: ContextBuffers) -> None:
        """Makes these the saved buffers."""
        if self.folder is not None:
            tensors, info = state_of(buffers)
            save_state(self.folder, tensors, info | {"job": self.job})


def fill_here(
    buffers: ContextBuffers,
    model: HookedModel,
    saes: Sequence[SAEHandle],
    batches: Iterable[TokenBatch],
    state: StateFolder,
) -> None:
    """Takes in the batches that the buffers have not seen; saves them now and then, and at the end."""
    n_unsaved = 0
    rest = (one for one in numbered(batches) if one.first >= buffers.n_windows)
    with _bar(buffers.n_windows) as bar:
        for n in fill_buffers(buffers, model, saes, rest):
            bar.update(n)
            n_unsaved += n
            if n_unsaved >= state.save_every:
                state.save(buffers)
                n_unsaved = 0
    if n_unsaved:
        state.save(buffers)


def fill_on_workers(
    buffers: ContextBuffers, executor: RayExecutor, load: Subjects, batches: Iterable[TokenBatch], state: StateFolder
) -> None:
    """As `fill_here`, and to the same bytes: shards on workers, whose merged buffers are taken in group by group."""
    batch_size = buffers.settings.batch_size
    shard_batches = min(_SHARD_BATCHES, math.ceil(state.save_every / batch_size))
    groups = shard_groups(
        (one for one in numbered(batches) if one.first >= buffers.n_windows),
        shard_batches=shard_batches,
        group_shards=math.ceil(state.save_every / (batch_size * shard_batches)),
    )
    with _bar(buffers.n_windows) as bar:

        def done(shard: BatchShard) -> None:
            bar.update(sum(len(one.batch) for one in shard))

        for found in executor.merged(load, groups, merge_packed, done=done):
            buffers.merge(unpacked(found))
            state.save(buffers)


def _bar(n_done: int) -> "tqdm[Never]":
    return tqdm(desc="collecting contexts", unit="window", initial=n_done, disable=None)
