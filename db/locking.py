"""One operating-system lock beside a SQLite file, held by one writer at a time.

SQLite before 3.51.3 can lose pages when one connection resets the write-ahead log while another writes ("WAL-reset
fault"). Writers and checkpoints therefore take turns on this lock; docs/decisions/0003 has the reasoning.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safe_sail.errors import DatabaseUnreachable

WAL_RESET_FIXED = (3, 51, 3)
"""First SQLite version without the WAL-reset fault."""
WAIT_SECONDS = 30.0
"""How long a writer waits for its turn; the same as SQLite's busy timeout, so both give up together."""


@contextmanager
def file_lock(path: Path, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Holds the lock file for the block; threads and processes alike wait for each other.

    The lock belongs to the open file, so the system frees it when a process dies.

    Raises:
        DatabaseUnreachable: the file cannot be opened, or another writer kept the lock longer than `wait_seconds`.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DatabaseUnreachable(
            f"lock file {path} cannot be opened ({error.strerror}); the folder must exist and be writable."
        ) from error
    try:
        _wait_for_turn(handle, path, wait_seconds)
        yield
    finally:
        os.close(handle)  # frees the lock


def _wait_for_turn(handle: int, path: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    pause = 0.001
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DatabaseUnreachable(
                    f"another writer has held {path} for {wait_seconds:g} s; wait for it or end it, then run again."
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        else:
            return
