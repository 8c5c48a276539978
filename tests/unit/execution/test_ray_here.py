"""Ray that an executor starts on this machine for itself."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from safe_sail.execution.executors import RayExecutor


def test_workers_here_run_at_the_priority_of_the_command():
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

    def load() -> Callable[[int], Counter[int]]:
        return lambda shard: Counter({os.nice(0): shard})

    (found,) = RayExecutor(workers=1).merged(load, [[1]], lambda one, other: one + other)
    assert found == Counter({os.nice(0): 1}), "by default Ray makes them yield to everything else"
    assert not ray.is_initialized(), "it ends with the run"
