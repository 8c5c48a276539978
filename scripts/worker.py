"""Take jobs from the database one after the other and run them as their commands would.

safe-sail worker --database sqlite:///safe-sail.db

1. A job is claimed with a lease, which a thread renews every few seconds while the job runs.
2. The job's command runs in this process, so that a model stays loaded; its progress bars are the job's progress.
3. It stops at its next step when it was cancelled, when another worker has it, or when this worker is told to end; in
   the last case it waits again and the next worker goes on from what was saved.
"""

import logging
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import TypeAdapter
from sqlalchemy import Engine

from api.settings import ServiceSettings
from db import leases
from db.engine import database_name, fenced, make_engine
from db.migrate import require_head
from safe_sail.errors import DatabaseUnreachable, LeaseLost, SafeSailError
from safe_sail.records import JobError, JobProgress
from safe_sail.settings.jobs import JOB_KINDS
from safe_sail.settings.live import LIVE_KINDS
from scripts.job_runs import JobContext, LastUsed, Loaded
from scripts.main import COMMANDS
from scripts.options import DEFAULT_DATABASE, DatabaseUrl, Device
from scripts.progress import heard_by

logger = logging.getLogger("safe_sail.worker")

POLL_SECONDS = 0.5
"""Pause between two looks for a job: 2 small queries a second."""
LIVE_POLL_SECONDS = 0.05
"""The same of a worker for which somebody waits: 20 queries a second, 3 ms of a second's work on SQLite."""
Takes = Literal["all", "live", "long"]
_KINDS: Mapping[Takes, Collection[str] | None] = {"all": None, "live": LIVE_KINDS, "long": JOB_KINDS}
TELL_SECONDS = 1.0
"""Pause between two heartbeats at most; each tells the progress if it is news and hears whether to stop."""


class _Stopped(Exception):
    """The job is to stop at this step."""


def work(
    database: DatabaseUrl = DEFAULT_DATABASE,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; of the models.")] = "float32",
    work_folder: Annotated[
        Path, typer.Option("--work", help="Folder where jobs keep what a later attempt goes on from.")
    ] = Path("safe-sail-jobs"),
    lease: Annotated[float, typer.Option(min=1, help="Seconds after which a silent worker is taken for dead.")] = 30.0,
    takes: Annotated[
        Takes, typer.Option(help="Jobs that it takes: all, those of somebody who waits (live), or the others (long).")
    ] = "all",
    keep_models: Annotated[int, typer.Option(min=1, help="Models that stay loaded between jobs.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", help="End when standard input is closed.")] = False,
) -> None:
    """Work on jobs until told to end (Ctrl-C or SIGTERM); the job at hand is given back and goes on elsewhere."""
    settings = ServiceSettings(database_url=database)
    engine = make_engine(database)
    require_head(engine)
    worker = Worker(
        engine=engine, settings=settings, work=work_folder, device=device, dtype=dtype, lease_s=lease,
        name=f"{platform.node()}:{os.getpid()}", takes=takes, loaded=Loaded(models=LastUsed(keep_models)),
    )  # fmt: skip
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: worker.stop.set())
    if with_parent:
        threading.Thread(target=_end_with_parent, args=(worker.stop,), daemon=True).start()
    print(f"Safe-SAIL works on jobs of {database_name(engine)} as {worker.name}; end with Ctrl-C.", flush=True)
    worker.run(until_empty=once)
    engine.dispose()


def _end_with_parent(stop: threading.Event) -> None:
    # unbuffered: a thread that holds the buffer's lock would make the interpreter abort at its end
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


@dataclass(kw_only=True)
class Worker:
    """Runs jobs of one database, one at a time."""

    engine: Engine
    settings: ServiceSettings
    work: Path
    name: str
    device: str = "cpu"
    dtype: str = "float32"
    lease_s: float = leases.LEASE_SECONDS
    takes: Takes = "all"
    stop: threading.Event = field(default_factory=threading.Event)
    loaded: Loaded = field(default_factory=Loaded)

    def run(self, *, until_empty: bool = False) -> None:
        """Takes jobs until told to stop, or until none waits."""
        while not self.stop.is_set():
            try:
                held = leases.claim(self.engine, self.name, lease_s=self.lease_s, kinds=_KINDS[self.takes])
            except DatabaseUnreachable as error:  # it may come back; the jobs are in it
                logger.warning("no job can be claimed: %s", error)
                self.stop.wait(5 * POLL_SECONDS)
                continue
            if held is not None:
                self.run_one(held)
            elif until_empty:
                return
            else:
                self.stop.wait(POLL_SECONDS if self.takes == "long" else LIVE_POLL_SECONDS)

    def run_one(self, held: leases.Claim) -> None:
        """Runs a claimed job to its end, whatever that is."""
        job = held.job
        logger.info("job %s (%s), attempt %d", job.job_id, job.kind, job.attempts)
        try:
            with _Pulse(self, held) as pulse:
                end = self._outcome(held, pulse)
            end()
        except (LeaseLost, DatabaseUnreachable) as error:  # in both cases the lease decides who has it next
            logger.warning("%s", error)
            return
        folder = self.work / job.job_id
        if not self.stop.is_set() and folder.exists():
            shutil.rmtree(folder)

    def _outcome(self, held: leases.Claim, pulse: "_Pulse") -> Callable[[], None]:
        """What is to be written of the job's end."""
        job = held.job
        try:
            with heard_by(pulse.hear):
                result = self._run(held)
        except _Stopped:
            if pulse.lost is not None:
                raise pulse.lost from None
            if pulse.cancelled:
                return lambda: leases.stop_cancelled(self.engine, held)
            return lambda: leases.release(self.engine, held)
        except LeaseLost:
            raise
        except DatabaseUnreachable as error:  # not the job's fault: it waits again, and counts as an idle attempt
            logger.warning("job %s: %s", job.job_id, error)
            return lambda: leases.release(self.engine, held, idle=True)
        except SafeSailError as error:
            logger.info("job %s failed: %s", job.job_id, error)
            said = JobError(type=type(error).__name__, message=str(error))
            return lambda: leases.fail(self.engine, held, said)
        except Exception:  # one job's mistake must not end the worker; the log has it whole
            logger.exception("job %s failed", job.job_id)
            said = JobError(type="Internal", message="a mistake of the program; the worker's log says more.")
            return lambda: leases.fail(self.engine, held, said)
        return lambda: leases.finish(self.engine, held, result)

    def _run(self, held: leases.Claim) -> Mapping[str, Any]:
        job = held.job
        settings = decode_settings(job.kind, job.settings)
        offers = self.settings.offers()
        offers.require(settings)
        context = JobContext(
            engine=fenced(self.engine, leases.fence(held)), offers=offers, work=self.work / job.job_id,
            device=self.device, dtype=self.dtype, llm_in_flight=self.settings.llm_in_flight, loaded=self.loaded,
            job_id=job.job_id,
        )  # fmt: skip
        run_job = import_module("scripts.live" if job.kind in LIVE_KINDS else COMMANDS[job.kind].module).run_job
        result: Mapping[str, Any] = run_job(settings, context)
        return result


def decode_settings(kind: str, values: Mapping[str, Any]) -> object:
    """The settings of a job as their type."""
    return TypeAdapter((JOB_KINDS | LIVE_KINDS)[kind]).validate_python(dict(values))


class _Pulse:
    """A thread that renews the lease and tells the progress while the job runs."""

    def __init__(self, worker: Worker, held: leases.Claim) -> None:
        self.lost: LeaseLost | None = None
        self.cancelled = False
        self._worker, self._held = worker, held
        self._heard: JobProgress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "_Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def hear(self, progress: JobProgress) -> None:
        """Takes in a step of the job, and stops it there if it must stop."""
        self._heard = progress
        if self.lost is not None or self.cancelled or self._worker.stop.is_set():
            raise _Stopped

    def _beat(self) -> None:
        told: JobProgress | None = None
        ended = False
        while not ended and self.lost is None:
            ended = self._ended.wait(min(TELL_SECONDS, self._worker.lease_s / 3))
            heard = self._heard
            news = heard if heard != told else None
            try:
                goes_on = leases.heartbeat(self._worker.engine, self._held, news, lease_s=self._worker.lease_s)
                self.cancelled = self.cancelled or not goes_on
                told = heard
            except LeaseLost as error:
                self.lost = error
            except DatabaseUnreachable as error:  # the next beat tries again; the lease decides in the end
                logger.warning("job %s: %s", self._held.job.job_id, error)
