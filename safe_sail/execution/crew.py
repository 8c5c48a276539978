"""The workers of a Ray cluster that do one computation: who does what, and what happens when one of them dies.

1. A worker loads its task once.
2. Every worker has two pieces of work at most: while it does one, the next one's shard is already there.
3. As soon as two results of a group are there, a worker merges them: results grow together as a tree, on the workers.
4. What a killed worker was at is done again by another one; a result that was lost with its machine lets its group
   begin anew. Nothing waits for a worker that waits for something, so that nothing can hang.

Plain actors and not Ray Data: that one hangs without a word where actors hold every CPU (Ray's issue 44687).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from safe_sail.errors import WorkerLost


class Patience(NamedTuple):
    """When a run gives up."""

    retries: int
    """Times that one piece of work is done again."""
    start_seconds: float
    """Time that workers may take to start where nothing else goes on."""


class Worker:
    """One process of the cluster, with the task, loaded once."""

    def start(self, load: Callable[[], Callable[[Any], Any]]) -> None:
        """Loads the task."""
        self.task = load()

    def run(self, shard: Any) -> tuple[None, Any]:
        """Nothing, which says that all went well and is small, and the result, which stays where it is."""
        return None, self.task(shard)

    def merge(self, merge: Callable[[Any, Any], Any], one: Any, other: Any) -> tuple[None, Any]:
        """As `run`, of two results."""
        return None, merge(one, other)


@dataclass(eq=False, slots=True)
class _Lane:
    """A worker's place; a killed worker's is taken by a new one."""

    actor: Any
    started: Any
    """Reference to what says that it has loaded."""
    is_ready: bool = False
    n_running: int = 0


@dataclass(eq=False, slots=True)
class _Group:
    """Shards whose results become one."""

    shards: Sequence[Any]
    n_left: int = 0
    """Pieces of work between now and the one result."""
    results: list[Any] = field(default_factory=list)
    """References to results that wait for another one."""
    n_starts: int = 0


@dataclass(eq=False, slots=True)
class _Work:
    """One shard, or two results to merge."""

    group: _Group
    start: int
    """Which start of the group it belongs to: a group that begins anew forgets the work before."""
    shard: Any = None
    pair: tuple[Any, ...] = ()
    n_lost: int = 0
    lane: _Lane | None = None
    actor: Any = None
    result: Any = None

    @property
    def is_stale(self) -> bool:
        return self.start != self.group.n_starts


class Crew:
    """Workers for the time of a `with` block."""

    def __init__(
        self,
        ray: Any,
        new_worker: Callable[[], Any],
        load: Callable[[], Callable[[Any], Any]],
        merge: Callable[[Any, Any], Any],
        *,
        n_workers: int,
        patience: Patience,
    ) -> None:
        self.ray, self.patience = ray, patience
        self._new_worker, self._load = new_worker, load
        self._merge = ray.put(merge)
        self._todo: deque[_Work] = deque()
        self._running: dict[Any, _Work] = {}
        """By the reference to the value that says that all went well."""
        self._lanes = [self._lane() for _ in range(n_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for lane in self._lanes:
            self.ray.kill(lane.actor)

    def merged(self, groups: Iterable[Sequence[Any]], done: Callable[[Any], None]) -> Iterator[Any]:
        """One merged result per group, groups in order.

        Raises:
            WorkerLost: workers do not start, or one piece of work lost them again and again.
        """
        source, is_over = iter(groups), False
        pending: deque[_Group] = deque()
        n_wanted = 2 * len(self._lanes)
        self._wait_for_workers(len(self._lanes))
        while True:
            while not is_over and len(self._todo) + len(self._running) < n_wanted and len(pending) < n_wanted + 2:
                shards = next(source, None)
                is_over = shards is None
                if shards:
                    pending.append(_Group(shards))
                    self._begin(pending[-1])
            self._hand_out()
            while pending and pending[0].n_left == 0:
                try:
                    found = self.ray.get(pending[0].results[0])
                except self.ray.exceptions.RayError as error:
                    self._begin(pending[0], error)
                else:
                    pending.popleft()
                    yield found
            if is_over and not pending:
                return
            self._hand_out()
            if not self._running:
                self._wait_for_workers(1)
                continue
            starting = [lane.started for lane in self._lanes if not lane.is_ready]
            ready, _ = self.ray.wait([*self._running, *starting], num_returns=1, fetch_local=False)
            if ready[0] in self._running:
                self._take(ready[0], done)
            else:
                self._wait_for_workers(0)

    # workers

    def _lane(self) -> _Lane:
        actor = self._new_worker()
        return _Lane(actor, actor.start.remote(self._load))

    def _wait_for_workers(self, n: int) -> None:
        """Marks the workers that have loaded, when there are n of them; raises what went wrong where one loads."""
        starting = {lane.started: lane for lane in self._lanes if not lane.is_ready}
        n_needed = n - (len(self._lanes) - len(starting))
        if not starting:
            return
        ready, late = self.ray.wait(
            list(starting), num_returns=max(1, n_needed), timeout=self.patience.start_seconds if n_needed > 0 else 0
        )
        for started in ready:
            try:
                self.ray.get(started)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self.ray.exceptions.RayError as error:
                raise WorkerLost(
                    f"a worker died while it loaded: {_first_line(error)} It may need more memory than there is."
                ) from error
            starting[started].is_ready = True
        if len(ready) < n_needed:
            raise WorkerLost(
                f"{len(late)} of {len(self._lanes)} workers did not start in {self.patience.start_seconds:g} s: others "
                f"may hold the cluster's CPUs or GPUs (`ray status` says). Ask for fewer workers, or wait for those."
            )

    # work

    def _begin(self, group: _Group, lost: Exception | None = None) -> None:
        """All shards of the group are to be done, whatever was done before."""
        if group.n_starts > self.patience.retries:
            raise WorkerLost(
                f"results were lost {group.n_starts} times: {_first_line(lost)} Machines may leave the cluster."
            )
        group.n_starts += 1
        group.results.clear()
        group.n_left = 2 * len(group.shards) - 1
        self._todo = deque(work for work in self._todo if work.group is not group)
        self._todo.extend(_Work(group, group.n_starts, shard) for shard in group.shards)

    def _hand_out(self) -> None:
        lanes = [lane for lane in self._lanes if lane.is_ready]
        while self._todo and lanes:
            lane = min(lanes, key=lambda lane: lane.n_running)
            if lane.n_running >= 2:
                return
            work = self._todo.popleft()
            if work.pair:
                call, given = lane.actor.merge, (self._merge, *work.pair)
            else:
                call, given = lane.actor.run, (work.shard,)
            went_well, work.result = call.options(num_returns=2).remote(*given)
            work.lane, work.actor = lane, lane.actor
            lane.n_running += 1
            self._running[went_well] = work

    def _take(self, went_well: Any, done: Callable[[Any], None]) -> None:
        """What came of a piece of work: its result waits for another one, or it is to be done again."""
        work, errors = self._running.pop(went_well), self.ray.exceptions
        assert work.lane is not None
        work.lane.n_running -= 1
        try:
            self.ray.get(went_well)
        except errors.RayActorError as error:
            self._replace(work)
            self._do_again(work, error)
            return
        except errors.RayError as error:
            # an error of the task itself, or of what the work needed, which went with its machine
            cause = error.cause if isinstance(error, errors.RayTaskError) else error
            if not isinstance(cause, errors.RayError):
                raise cause from error
            if not work.is_stale:
                self._begin(work.group, cause)
            return
        if work.is_stale:
            return
        group = work.group
        group.results.append(work.result)
        group.n_left -= 1
        if len(group.results) == 2:
            # before any shard, so that few results are held at once
            self._todo.appendleft(_Work(group, group.n_starts, pair=tuple(group.results)))
            group.results.clear()
        if not work.pair:
            done(work.shard)

    def _replace(self, work: _Work) -> None:
        """A new worker in the place of the dead one, unless it stands there already."""
        lane = work.lane
        if lane is not None and work.actor is lane.actor:
            new = self._lane()
            lane.actor, lane.started, lane.is_ready = new.actor, new.started, False

    def _do_again(self, work: _Work, error: Exception) -> None:
        if work.is_stale:
            return
        work.n_lost += 1
        if work.n_lost > self.patience.retries:
            raise WorkerLost(
                f"one piece of work lost its worker {work.n_lost} times: {_first_line(error)} It may need more memory "
                f"than there is."
            ) from error
        self._todo.appendleft(work)


def _first_line(error: Exception | None) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
