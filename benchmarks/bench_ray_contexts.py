"""How much do two Ray workers on two cores gain over one, and is what they collect the same to the last byte?

Two x86-64 cores with other processes at a lower priority beside it, Ray 2.60, torch 2.13.0+cpu; 2026-11-27. One run
over 196,608 tokens, and two over 65,536 (`--batches 16 --repeats 2`):

| | start, s | work, s | CPU s | tokens / s |
|---|---|---|---|---|
| one worker | 14.3; 15.1, 13.9 | 65.0; 22.4, 20.8 | 66.7; 23.4, 21.8 | 3,027; 2,924, 3,145 |
| two workers | 14.6; 16.6, 15.4 | 33.0; 11.3, 12.1 | 58.3; 21.8, 23.3 | 5,961; 5,803, 5,422 |
| in this process, 65,536 tokens | | | | 2,961; 2,854 |

Two are 1.97, 1.98 and 1.72 times one (asked: 1.6); the CPU seconds say how noise fell on the three pairs. The results
are equal to the last byte. A worker costs nothing beside this process once it runs, and 15 s before that, most of
them to import torch: below a few minutes of work Ray is not worth its start.

An earlier form of this benchmark did not end: it started workers seven times, and Ray makes workers yield to every
other process (niceness 15), so that on a machine with other work they nearly stood still. The executor now starts Ray
with workers at its own priority.

Random Llama and ReLU SAE of `bench_contexts`; windows of 64 tokens, a batch of 64, shards of four batches, one thread a
process. The clock runs from when the workers are loaded to when the merged result is here: shards out, forward passes,
buffers merged and back. Starting workers is told apart: it is paid once a run, whatever the corpus.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_ray_contexts
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
import ray
import torch

from benchmarks.bench_contexts import BATCH, LARGE, SETTINGS, WINDOW, batches, build
from safe_sail.execution.executors import InlineExecutor, RayExecutor
from safe_sail.features.context_shards import Packed, ShardTask, merge_packed, shard_groups
from safe_sail.features.contexts import NumberedBatch

Group = tuple[tuple[NumberedBatch, ...], ...]


def load() -> ShardTask:
    torch.set_num_threads(1)
    parts = build(LARGE)
    features = {parts.sae.ref.slug: range(parts.sae.d_sae)}
    return ShardTask(model=parts.model, saes=[parts.sae], features=features, settings=SETTINGS, seed=0)


def groups_of(n_batches: int) -> list[Group]:
    return list(shard_groups(batches(n_batches), shard_batches=4, group_shards=n_batches))


class Spent(NamedTuple):
    start: float
    """Wall seconds until all workers have loaded."""
    wall: float
    """From then to the merged result."""
    cpu: float
    """Of this process, of Ray's and of the workers, in that time."""


def cpu_seconds() -> float:
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True)) if one.is_running()]
    return sum(one.user + one.system for one in times)


def timed(executor: InlineExecutor | RayExecutor, groups: list[Group]) -> tuple[Packed, Spent]:
    """The merged result of the one group, and what it took."""
    began = time.perf_counter()
    at: list[tuple[float, float]] = []

    def asked() -> Iterator[Group]:
        # first asked for when the task is loaded, on every worker
        for group in groups:
            at.append((time.perf_counter(), cpu_seconds()))
            yield group

    merged = executor.merged(load, asked(), merge_packed)
    found = next(merged)
    # before the workers end, and their seconds with them
    wall, cpu = time.perf_counter() - at[0][0], cpu_seconds() - at[0][1]
    assert next(merged, None) is None, "one group"
    print(
        f"{type(executor).__name__}: {at[0][0] - began:.1f} s to start, {wall:.1f} s of work",
        file=sys.stderr,
        flush=True,
    )
    # what Ray hands out lies in its memory, which ends with it
    return Packed({name: array.copy() for name, array in found.arrays.items()}, found.info), Spent(
        at[0][0] - began, wall, cpu
    )


def same(one: Packed, other: Packed) -> bool:
    names = one.arrays.keys() == other.arrays.keys()
    return (
        names
        and one.info == other.info
        and all((one.arrays[name] == other.arrays[name]).all() for name in other.arrays)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    n_first = min(16, options.batches)
    first, groups = groups_of(n_first), groups_of(options.batches)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        _system_config={"worker_niceness": os.nice(0)},
    )  # fmt: skip
    expected, inline = timed(InlineExecutor(), first)
    found, _ = timed(RayExecutor(workers=2), first)
    assert same(found, expected), "what workers merge is what one process finds"
    spent: dict[int, list[Spent]] = {1: [], 2: []}
    whole: Packed | None = None
    for repeat in range(options.repeats):
        for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
            found, one = timed(RayExecutor(workers=workers), groups)
            assert whole is None or same(found, whole), "one worker and two find the same"
            whole = found
            spent[workers].append(one)
    ray.shutdown()
    gains = [one.wall / two.wall for one, two in zip(spent[1], spent[2], strict=True)]
    # where other work takes part of both cores, wall seconds say little: two cores cannot be quicker than this
    bounds = [2 * one.cpu / two.cpu for one, two in zip(spent[1], spent[2], strict=True)]
    tokens = options.batches * BATCH * WINDOW
    result: dict[str, Any] = {
        "benchmark": "ray_contexts",
        "tokens": tokens,
        "inline_tokens_per_s": round(n_first * BATCH * WINDOW / inline.wall),
        "tokens_per_s": {n: [round(tokens / one.wall) for one in seconds] for n, seconds in spent.items()},
        "start_s": {n: [round(one.start, 1) for one in seconds] for n, seconds in spent.items()},
        "wall_s": {n: [round(one.wall, 2) for one in seconds] for n, seconds in spent.items()},
        "cpu_s": {n: [round(one.cpu, 2) for one in seconds] for n, seconds in spent.items()},
        "two_over_one": [round(one, 2) for one in gains],
        "bound_by_cpu": [round(one, 2) for one in bounds],
        "load_average": [round(one, 1) for one in os.getloadavg()],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
