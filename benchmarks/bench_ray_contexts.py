"""How much do two Ray workers on two cores gain over one, and is what they collect the same to the last byte?

Two x86-64 cores, one thread a process. Not measured yet: wall seconds of two processes mean something only where both
cores are idle, and no such hour was found. The bar is 1.6. That the bytes are the same is tested as well.

Random Llama and ReLU SAE of `bench_contexts`; windows of 64 tokens, a batch of 64, shards of four batches. Workers are
started and loaded before the clock runs; what it measures is shards out, forward passes, buffers merged and back.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_ray_contexts
"""

import argparse
import json
import os
import statistics
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
    """One group that lets every worker load and warm up, and one that is timed."""
    found = list(batches(n_batches + 4))
    (warm,) = shard_groups(found[:4], shard_batches=1, group_shards=4)
    (timed,) = shard_groups(found[4:], shard_batches=4, group_shards=n_batches)
    return [warm, timed]


class Spent(NamedTuple):
    wall: float
    cpu: float
    """Of this process, of Ray's and of the workers."""


def now() -> Spent:
    me = psutil.Process()
    times = [one.cpu_times() for one in (me, *me.children(recursive=True)) if one.is_running()]
    return Spent(time.perf_counter(), sum(one.user + one.system for one in times))


def timed(executor: InlineExecutor | RayExecutor, groups: list[Group]) -> tuple[Packed, Spent]:
    """The second group's result, and the seconds from when it is asked for, the workers warm, to when it is there."""
    asked_at, ended_at = [], []

    def asked() -> Iterator[Group]:
        for group in groups:
            asked_at.append(now())
            yield group

    def seen(shard: object) -> None:
        # before the workers end, and their seconds with them
        ended_at.append(now())

    _, found = executor.merged(load, asked(), merge_packed, done=seen)
    start, end = asked_at[1], ended_at[-1]
    return found, Spent(end.wall - start.wall, end.cpu - start.cpu)


def same(one: Packed, other: Packed) -> bool:
    return one.info == other.info and all((one.arrays[name] == other.arrays[name]).all() for name in other.arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    groups = groups_of(options.batches)
    expected, inline = timed(InlineExecutor(), groups)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    spent: dict[int, list[Spent]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for workers, seconds in spent.items():
            found, one = timed(RayExecutor(workers=workers), groups)
            assert same(found, expected), "what workers merge is what one process finds"
            seconds.append(one)
    ray.shutdown()
    gains = [one.wall / two.wall for one, two in zip(spent[1], spent[2], strict=True)]
    # where other work takes part of both cores, wall seconds say little: two cores cannot be quicker than this
    bounds = [2 * one.cpu / two.cpu for one, two in zip(spent[1], spent[2], strict=True)]
    result: dict[str, Any] = {
        "benchmark": "ray_contexts",
        "tokens": options.batches * BATCH * WINDOW,
        "inline": [round(one, 2) for one in inline],
        "wall_s": {workers: [round(one.wall, 2) for one in seconds] for workers, seconds in spent.items()},
        "cpu_s": {workers: [round(one.cpu, 2) for one in seconds] for workers, seconds in spent.items()},
        "two_over_one": round(statistics.median(gains), 2),
        "spread": [round(min(gains), 2), round(max(gains), 2)],
        "bound_by_cpu": round(statistics.median(bounds), 2),
        "load_average": [round(one, 1) for one in os.getloadavg()],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
