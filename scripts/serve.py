"""Serve the database: REST under /v1 and the web page. Needs no torch and starts in about a second.

safe-sail serve --database sqlite:///safe-sail.db --port 8420
"""

import socket
from contextlib import suppress
from typing import Annotated

import typer
import uvicorn

from api.main import create_app
from api.settings import ServiceSettings
from db.engine import database_name, make_engine
from db.migrate import require_head
from safe_sail.errors import BadSettings
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


def serve(
    database: DatabaseUrl = DEFAULT_DATABASE,
    host: Annotated[str, typer.Option(help="Loopback address to listen on; others are refused.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 lets the system choose.")] = 8420,
) -> None:
    """Serve until interrupted.

    Raises:
        BadSettings: the host is not a loopback address, or the port is taken.
        DatabaseUnreachable: there is no database yet, or it does not answer.
        SchemaOutOfDate: it has another schema; the message says what to type.
    """
    settings = ServiceSettings(database_url=database, host=host, port=port)
    engine = make_engine(settings.database_url, read_only=True)
    require_head(engine)
    engine.dispose()
    app = create_app(settings)
    with _listen(host, port) as door:
        address = f"[{host}]" if ":" in host else host
        print(f"Safe-SAIL serves {database_name(engine)}; REST under /v1, end with Ctrl-C.", flush=True)
        print(f"Open http://{address}:{door.getsockname()[1]}/", flush=True)
        with suppress(KeyboardInterrupt):  # the server has ended in good order by then
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[door])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadSettings(
            f"{host}:{port} cannot be listened on ({error.strerror}); another program has it. Choose one with --port."
        ) from error
