"""Answers read past the session: on SQLite a short read in the event loop itself, anything else in a few threads.

A hop to a thread and back costs more than a read along a primary key, so that one is not hopped for. It never waits: a
database that is busy or gone fails at once, and then the ordinary way through a session is taken, whose errors say
what is wrong.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Engine

from db.direct import DirectReadFailed, DirectReads
from db.engine import reading
from db.prepared import Run, run_in

_THREADS = min(4, max(2, os.cpu_count() or 2))
"""Of reads that may take longer. They take turns at Python's lock at every row: on 2 cores 2 threads answer 1.8 times
as many searches as 8, the slowest in a hundred in a third of the time (`benchmarks/bench_service.py`)."""


class DirectAnswers:
    """What the app keeps open for such reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reads = DirectReads(engine)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="direct-read")

    async def answer(self, read: Callable[[Run], bytes], *, short: bool) -> bytes:
        """What `read` makes of one snapshot; `short` says that it follows keys and looks at a page at most.

        Raises:
            SafeSailError: what `read` raises, and as `db.engine.reading`.
        """
        try:
            if short and self._reads.on_sqlite:
                return self._direct(read)
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._direct, read)
        except DirectReadFailed:
            return await run_in_threadpool(self._in_session, read)

    def close(self) -> None:
        """Ends the threads and closes their connections."""
        self._threads.shutdown()
        self._reads.close()

    def _direct(self, read: Callable[[Run], bytes]) -> bytes:
        with self._reads.snapshot() as run:
            return read(run)

    def _in_session(self, read: Callable[[Run], bytes]) -> bytes:
        with reading(self._engine) as session:
            return read(run_in(session))


async def answer_json(request: Request, read: Callable[[Run], bytes], *, short: bool) -> Response:
    """The answer that `read` makes, as JSON."""
    direct: DirectAnswers = request.app.state.direct
    return Response(await direct.answer(read, short=short), media_type="application/json")
