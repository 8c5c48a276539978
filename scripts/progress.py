"""Progress bars that a job hears too: `tqdm` for a person at a terminal, and a listener where a worker set one."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from tqdm import tqdm as plain_tqdm

from safe_sail.records import JobProgress

T = TypeVar("T")
Listener = Callable[[JobProgress], None]
_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Every bar of the block tells the listener how far it is; what the listener raises ends the work."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class tqdm(plain_tqdm, Generic[T]):  # type: ignore[type-arg]
    """A bar of tqdm's that tells the listener of each step, also where nothing is drawn."""

    def __init__(
        self, iterable: Iterable[T] | None = None, *, desc: str = "", total: int | None = None, **how: Any
    ) -> None:
        sized: object = iterable
        if total is None and isinstance(sized, Sized):
            total = len(sized)
        self._step, self._said, self._n_done, self._n_total = desc or "working", "", 0, total
        super().__init__(iterable, desc=desc, total=total, **how)
        self._n_done = int(how.get("initial", 0))
        self._tell()

    def __iter__(self) -> Iterator[T]:
        try:
            for one in self.iterable:
                yield one
                self.update(1)
        finally:
            self.close()

    def update(self, n: float | None = 1) -> bool | None:
        """Goes on by n items."""
        self._n_done += int(n or 0)
        drawn = super().update(n)
        self._tell()
        return drawn

    def says(self, message: str) -> None:
        """What is being done now, beside the bar and in what the listener is told next."""
        self._said = message
        self.set_postfix_str(message, refresh=False)

    def _tell(self) -> None:
        listener = _listener.get()
        if listener is not None:
            step = f"{self._step}: {self._said}" if self._said else self._step
            listener(JobProgress(step=step, n_done=self._n_done, n_total=self._n_total))


@contextmanager
def reported(desc: str, *, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A bar as the function that a search reports its steps to, in words."""
    with tqdm[Any](desc=desc, total=total, unit=" step", disable=None) as bar:

        def report(message: str) -> None:
            bar.says(message)
            bar.update()

        yield report
