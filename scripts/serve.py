"""Serve the database: REST under /v1 and the web page, with a worker for long jobs and one for live requests.

safe-sail serve --database sqlite:///safe-sail.db --port 8420

This process needs no torch and starts in about a second; the workers are others. They are started again when they die,
and end when this process does, in whatever way.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Annotated

import typer
import uvicorn
from sqlalchemy import Engine

from api.logs import log_to
from api.main import create_app
from api.settings import LOOPBACK_NAMES, ServiceSettings, listens_on_loopback
from db.engine import database_name, make_engine, reading
from db.keys import list_keys
from db.migrate import require_head
from safe_sail.errors import BadSettings
from scripts.options import DEFAULT_DATABASE, DatabaseUrl, Device, environment_for

RESTART_SECONDS = 2.0
"""Pause before a worker that died is started again."""
END_SECONDS = 20.0
"""Time for a worker to come to a step at which it can stop."""


def serve(
    database: DatabaseUrl = DEFAULT_DATABASE,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback, keys are needed.")] = "127.0.0.1",
    with_worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Run jobs too, in another process.")] = True,
    device: Device = "cpu",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 lets the system choose.")] = 8420,
) -> None:
    """Serve until interrupted.

    Raises:
        BadSettings: the host is beyond loopback and there is no key or no name for it, or the port is taken.
        DatabaseUnreachable: there is no database yet, or it does not answer.
        SchemaOutOfDate: it has another schema; the message says what to type.
    """
    settings = ServiceSettings(database_url=database, host=host, port=port)
    engine = make_engine(settings.database_url, read_only=True)
    require_head(engine)
    if not listens_on_loopback(host):
        _require_keys(engine, settings)
    engine.dispose()
    log_to(settings.log)
    app = create_app(settings)
    with _listen(host, port) as door:
        address = f"[{host}]" if ":" in host else host
        print(f"Safe-SAIL serves {database_name(engine)}; REST under /v1, end with Ctrl-C.", flush=True)
        print(f"Open http://{address}:{door.getsockname()[1]}/", flush=True)
        with ExitStack() as helpers, suppress(KeyboardInterrupt):  # the server has ended in good order by then
            for takes in ("long", "live") if with_worker else ():  # nobody who waits stands behind an hour's job
                helpers.enter_context(_worker(database, device, takes))
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[door])


def _require_keys(engine: Engine, settings: ServiceSettings) -> None:
    with reading(engine) as session:
        has_keys = any(key.revoked is None for key in list_keys(session))
    if not has_keys:
        raise BadSettings(
            f"host {settings.host!r} is not a loopback address, so every request needs an API key, and there is none; "
            f"type `safe-sail keys create NAME`, or listen on 127.0.0.1 and forward the port."
        )
    if settings.allowed_hosts == LOOPBACK_NAMES:
        raise BadSettings(
            f"host {settings.host!r} is not a loopback address; SAFE_SAIL_ALLOWED_HOSTS must say by which names the "
            f'service may be called, as ["sail.example.org"].'
        )


@contextmanager
def _worker(database: str, device: str, takes: str) -> Iterator[None]:
    """A worker process beside this one for the length of the block, started again whenever it dies."""
    command = [sys.executable, "-P", "-m", "scripts.main", "worker"]
    ended = threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def keep_up() -> None:
        while not ended.is_set():
            process = subprocess.Popen(
                [*command, "--with-parent", "--device", device, "--takes", takes],
                # a URL may hold a password, and a command line is read by everybody
                env=environment_for(database),
                stdin=subprocess.PIPE,  # closed by the system when this process dies: the worker's sign to end
                stdout=subprocess.DEVNULL,
            )
            started.append(process)
            if ended.is_set():
                process.terminate()
            process.wait()
            ended.wait(RESTART_SECONDS)

    thread = threading.Thread(target=keep_up, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()  # what it had not saved, its job does again
            process.wait()
        thread.join()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadSettings(
            f"{host}:{port} cannot be listened on ({error.strerror}); another program has it. Choose one with --port."
        ) from error
