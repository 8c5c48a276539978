"""Serve the database: REST under /v1 and the web page. Needs no torch and starts in about a second.

safe-sail serve --database sqlite:///safe-sail.db --port 8420
"""

from typing import Annotated

import typer
import uvicorn

from api.main import create_app
from api.settings import ServiceSettings
from db.engine import database_name, make_engine
from db.migrate import require_head
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


def serve(
    database: DatabaseUrl = DEFAULT_DATABASE,
    host: Annotated[str, typer.Option(help="Loopback address to listen on; others are refused.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 lets the system choose.")] = 8420,
) -> None:
    """Serve until interrupted.

    Raises:
        BadSettings: the host is not a loopback address.
        DatabaseUnreachable: there is no database yet, or it does not answer.
        SchemaOutOfDate: it has another schema; the message says what to type.
    """
    settings = ServiceSettings(database_url=database, host=host, port=port)
    engine = make_engine(settings.database_url, read_only=True)
    require_head(engine)
    engine.dispose()
    app = create_app(settings)
    print(
        f"Safe-SAIL serves {database_name(engine)} at http://{host}:{port}/  (REST under /v1; end with Ctrl-C)",
        flush=True,
    )
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", server_header=False)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
