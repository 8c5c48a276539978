"""Ray that an executor starts on this machine for itself."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from safe_sail.errors import WorkerLost
from safe_sail.execution.executors import RayExecutor
from tests.ray_start import patiently


def test_workers_here_run_at_the_priority_of_the_command():
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

    def load() -> Callable[[int], Counter[int]]:
        return lambda shard: Counter({os.nice(0): shard})

    (found,) = patiently(lambda: list(RayExecutor(workers=1).merged(load, [[1]], lambda one, other: one + other)))
    assert found == Counter({os.nice(0): 1}), "by default Ray makes them yield to everything else"
    assert not ray.is_initialized(), "it ends with the run"


def test_a_ray_that_is_not_up_in_time_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(WorkerLost, match="this machine is too busy"):
        list(RayExecutor(workers=1).merged(lambda: Counter, [["a"]], lambda one, other: one + other))


def test_it_joins_no_cluster_that_runs_on_this_machine():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    other = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    two = RayExecutor(workers=2)
    try:
        (found,) = patiently(lambda: list(two.merged(lambda: Counter, [["a", "b"]], lambda one, other: one + other)))
    finally:
        other.shutdown()
    assert found == Counter("ab"), "two workers do not fit into the other one"
