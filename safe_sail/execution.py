"""Where the parts of a long computation run: a task is a pure function from a shard to something that merges."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a task on shards."""

    def run(self, task: Callable[[Shard], Result], shards: Iterable[Shard]) -> Iterator[Result]:
        """Results in the order of the shards; an error of a task is raised where its result would be."""
        ...


class InlineExecutor:
    """Runs every shard in this process, one after the other."""

    def run(self, task: Callable[[Shard], Result], shards: Iterable[Shard]) -> Iterator[Result]:
        """Results in the order of the shards, each computed when it is asked for."""
        return map(task, shards)
