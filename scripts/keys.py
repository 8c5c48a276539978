"""API keys of the service: make one, list them, revoke one.

safe-sail keys create NAME --scope write
safe-sail keys list
safe-sail keys revoke PREFIX
"""

from typing import Annotated, Literal

import typer

from db.engine import make_engine, reading, writing
from db.keys import Scope, create_key, list_keys, revoke_key
from db.migrate import upgrade
from safe_sail.errors import BadInput
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


def keys(
    action: Annotated[Literal["create", "list", "revoke"], typer.Argument(help="create, list or revoke.")],
    which: Annotated[str | None, typer.Argument(help="Whose key is made; prefix of the key to revoke.")] = None,
    scope: Annotated[Scope, typer.Option(help="read: every GET; write: jobs too; admin: kept for later.")] = Scope.READ,
    database: DatabaseUrl = DEFAULT_DATABASE,
) -> None:
    """Make, list or revoke the keys that the service asks for when it listens beyond this machine."""
    if (which is None) != (action == "list"):
        raise BadInput("expected `keys create NAME`, `keys list` or `keys revoke PREFIX`.")
    engine = make_engine(database)
    upgrade(engine)
    if which is None:
        with reading(engine) as session:
            for key in list_keys(session):
                state = "in use" if key.revoked is None else f"revoked {key.revoked:%Y-%m-%d}"
                print(f"{key.prefix}  {key.scope:5}  {key.created:%Y-%m-%d}  {state}  {key.name}")
    elif action == "create":
        with writing(engine) as session:
            made = create_key(session, which, scope)
        print(f"{made}\nIt is shown once and kept nowhere; send it as `Authorization: Bearer {made[:18]}...`.")
    else:
        with writing(engine) as session:
            key = revoke_key(session, which)
        print(f"{key.prefix} of {key.name} is revoked")
    engine.dispose()
