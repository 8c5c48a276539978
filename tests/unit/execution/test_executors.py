"""Executors: the same results in the same order wherever shards run, and what happens when workers die.

One cluster runs on this machine for all tests of the file: a machine of two CPUs, and another one that goes.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safe_sail.errors import BadInput, BadSettings, WorkerLost
from safe_sail.execution.executors import InlineExecutor, RayExecutor
from tests.ray_start import patiently

Task = Callable[[int], Counter[int]]
GROUPS = [list(range(5)), [5], list(range(6, 13))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False}
    found = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    ray.init(found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def squares() -> Task:
    return lambda shard: Counter({shard * shard: shard + 1})


def squares_that_kill(marker: Path, shard_that_kills: int, n_kills: int) -> Task:
    """Kills its own process at one shard, the first times."""

    def task(shard: int) -> Counter[int]:
        if shard == shard_that_kills and len(list(marker.iterdir())) < n_kills:
            (marker / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return squares()(shard)

    return task


def added(one: Counter[int], other: Counter[int]) -> Counter[int]:
    return one + other


def by_hand() -> list[Counter[int]]:
    return [Counter({shard * shard: shard + 1 for shard in group}) for group in GROUPS]


def test_inline_merges_groups_in_order():
    seen: list[int] = []
    assert list(InlineExecutor().merged(squares, GROUPS, added, done=seen.append)) == by_hand()
    assert seen == list(range(13))


@pytest.mark.usefixtures("cluster")
def test_ray_merges_groups_in_order():
    seen: list[int] = []
    assert list(RayExecutor(workers=2).merged(squares, GROUPS, added, done=seen.append)) == by_hand()
    assert sorted(seen) == list(range(13))


@pytest.mark.usefixtures("cluster")
def test_what_a_killed_worker_was_at_is_done_again(tmp_path: Path):
    found = RayExecutor(workers=2).merged(lambda: squares_that_kill(tmp_path, 7, n_kills=1), GROUPS, added)
    assert list(found) == by_hand()
    assert len(list(tmp_path.iterdir())) == 1, "one process died"


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_every_worker_ends_the_run(tmp_path: Path):
    found = RayExecutor(workers=1, retries=1).merged(lambda: squares_that_kill(tmp_path, 5, n_kills=99), GROUPS, added)
    before: list[Counter[int]] = []
    with pytest.raises(WorkerLost, match="lost its worker 2 times"):
        before.extend(found)
    # work of the next group begins before the first is handed out, so the first may come or not; the second never does
    assert before == by_hand()[: len(before)]
    assert len(before) <= 1


def test_a_result_that_was_lost_with_its_machine_is_made_again(cluster: Any, tmp_path: Path):
    other = patiently(lambda: cluster.add_node(num_cpus=1))
    other_id = other.node_id
    on_other: list[int] = []

    def load() -> Callable[[int], Counter[str]]:
        import ray

        def task(shard: int) -> Counter[str]:
            if ray.get_runtime_context().get_node_id() == other_id:
                (tmp_path / str(shard)).touch()
            # above 100 kB a result lies on its machine
            return Counter({"pad" * 50_000: 1, str(shard): shard})

        return task

    def lose(shard: int) -> None:
        if not on_other and (tmp_path / str(shard)).exists():
            on_other.append(shard)
            cluster.remove_node(other)

    (found,) = RayExecutor(workers=3).merged(load, [range(1, 8)], added, done=lose)
    assert on_other, "a shard was done on the machine that went"
    assert found == Counter({"pad" * 50_000: 7, **{str(shard): shard for shard in range(1, 8)}})


@pytest.mark.usefixtures("cluster")
def test_errors_of_a_task_come_back_as_they_are():
    def refuse(shard: int) -> Counter[int]:
        raise BadInput(f"shard {shard} is refused")

    with pytest.raises(BadInput, match=r"^shard 0 is refused$"):
        list(RayExecutor(workers=1).merged(lambda: refuse, [[0]], added))

    def cannot_load() -> Task:
        raise BadInput("nothing to load")

    with pytest.raises(BadInput, match=r"^nothing to load$"):
        list(RayExecutor(workers=1).merged(cannot_load, GROUPS, added))


@pytest.mark.usefixtures("cluster")
def test_workers_that_cannot_be_are_refused_instead_of_waited_for():
    with pytest.raises(BadSettings, match="3 workers need 3 CPUs, the Ray cluster has 2"):
        list(RayExecutor(workers=3).merged(squares, GROUPS, added))
    first = RayExecutor(workers=2).merged(squares, GROUPS, added)
    next(first)
    with pytest.raises(WorkerLost, match="1 of 1 workers did not start"):
        list(RayExecutor(workers=1, start_seconds=1).merged(squares, GROUPS, added))
    first.close()


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadSettings, match=r"pip install 'safe-sail\[ray\]'"):
        list(RayExecutor(workers=1).merged(squares, GROUPS, added))


def test_no_worker_is_refused():
    with pytest.raises(BadSettings, match="got 0 of 1"):
        RayExecutor(workers=0)
