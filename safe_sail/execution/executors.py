"""Where the parts of a long computation run: in this process, or on workers of a Ray cluster.

A task is a function from a shard to a result that merges with others in any order. Shards come in groups, such as what
lies between two saves; each group comes back as one result, groups in their order. Ray is imported only where it is
asked for: `pip install 'safe-sail[ray]'`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from math import ceil
from typing import Any, Protocol, TypeVar

from safe_sail.errors import BadSettings, WorkerLost
from safe_sail.execution.crew import Crew, Patience, Worker

Shard = TypeVar("Shard")
Result = TypeVar("Result")
Load = Callable[[], Callable[[Shard], Result]]
Merge = Callable[[Result, Result], Result]
Done = Callable[[Shard], None]


def _nothing(shard: object) -> None:
    """Stands in for a caller who does not want to know."""


class Executor(Protocol):
    """Runs a task on shards and merges what it finds."""

    def merged(
        self, load: Load[Shard, Result], groups: Iterable[Sequence[Shard]], merge: Merge[Result], *, done: Done[Shard]
    ) -> Iterator[Result]:
        """One merged result per group, groups in order; an error of a task is raised where its group would be.

        `load` makes the task, `merge` may change its first argument, `done` is told each shard whose result is there.
        """
        ...


class InlineExecutor:
    """Runs every shard in this process, one after the other."""

    def merged(
        self,
        load: Load[Shard, Result],
        groups: Iterable[Sequence[Shard]],
        merge: Merge[Result],
        *,
        done: Done[Shard] = _nothing,
    ) -> Iterator[Result]:
        """One merged result per group, each computed when it is asked for."""
        task = load()

        def found(shard: Shard) -> Result:
            result = task(shard)
            done(shard)
            return result

        for group in groups:
            yield reduce(merge, map(found, group))


class RayExecutor:
    """Runs shards on workers of a Ray cluster, or of a Ray that is started here and ends with the run.

    A worker is a process that keeps its CPUs and GPUs; several methods of one are never run at once.
    """

    def __init__(
        self,
        *,
        workers: int,
        address: str | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
        retries: int = 3,
        start_seconds: float = 600,
    ) -> None:
        if workers < 1 or cpus < 1 or gpus < 0:
            raise BadSettings(f"expected workers of at least one CPU, at least one; got {workers} of {cpus}.")
        self.workers, self.cpus, self.gpus = workers, cpus, gpus
        self.address = address
        """`HOST:PORT` of a running cluster, `auto` on one of its machines; None starts one here."""
        self.retries = retries
        """Times that one piece of work is done again; a shard that kills its worker would kill them all."""
        self.start_seconds = start_seconds
        """A cluster that has not started the workers by then will not: the run ends instead of waiting for ever."""

    def merged(
        self,
        load: Load[Shard, Result],
        groups: Iterable[Sequence[Shard]],
        merge: Merge[Result],
        *,
        done: Done[Shard] = _nothing,
    ) -> Iterator[Result]:
        """One merged result per group, groups in order.

        Raises:
            BadSettings: Ray is not installed, or the cluster is smaller than the workers asked for.
            WorkerLost: the cluster did not start the workers, or one piece of work lost them again and again.
        """
        ray = _imported_ray()
        is_mine = not ray.is_initialized()
        if is_mine:
            self._connect(ray)
        try:
            self._require_room(ray)
            with self._crew(ray, load, merge) as crew:
                yield from crew.merged(groups, done)
        finally:
            if is_mine:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        here: dict[str, Any] = {}
        if self.address is None:
            here = {
                "num_cpus": self.workers * self.cpus,
                "include_dashboard": False,
                # workers of Ray yield to every other process by a niceness of 15: on a busy machine the command, which
                # waits for them, would stand nearly still beside what runs at its own priority; Ray adds this number
                # to the niceness that they have from the command
                "_system_config": {"worker_niceness": 0},
            }
        if here and self.gpus:
            here["num_gpus"] = ceil(self.workers * self.gpus)
        try:
            # without an address Ray would join whatever cluster runs on this machine
            ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        except Exception as error:
            if here and "timed out during startup" in str(error):  # Ray has no class of its own for it
                raise WorkerLost(
                    "Ray did not start within the half-minute that it gives itself: this machine is too busy. Run "
                    "again, or without Ray."
                ) from error
            if not isinstance(error, ConnectionError):
                raise
            raise WorkerLost(
                f"no Ray cluster answers at `{self.address}` ({str(error).splitlines()[0]}). Start one with "
                f"`ray start --head`, or leave the address out to run on this machine."
            ) from error

    def _require_room(self, ray: Any) -> None:
        there = ray.cluster_resources()
        for name, needed in (("CPU", self.workers * self.cpus), ("GPU", self.workers * self.gpus)):
            if needed > there.get(name, 0):
                raise BadSettings(
                    f"{self.workers} workers need {needed:g} {name}s, the Ray cluster has {there.get(name, 0):g}; ask "
                    f"for fewer workers or join machines to the cluster."
                )

    def _crew(self, ray: Any, load: Load[Shard, Result], merge: Merge[Result]) -> Crew:
        kept = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(Worker)
        patience = Patience(retries=self.retries, start_seconds=self.start_seconds)
        return Crew(ray, lambda: kept.remote(), load, merge, n_workers=self.workers, patience=patience)


def _imported_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BadSettings("the executor ray needs the package ray: pip install 'safe-sail[ray]'.") from error
    return ray
