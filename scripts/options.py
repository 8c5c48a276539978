"""Options that several commands share; the only place of the commands that reads the environment."""

from pathlib import Path
from typing import Annotated

import typer

DatabaseUrl = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="SAFE_SAIL_DATABASE_URL",
        help="Where results are kept: sqlite:///FILE or postgresql://USER@HOST/NAME.",
    ),
]
DEFAULT_DATABASE = "sqlite:///safe-sail.db"

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; nothing is guessed.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides every random choice.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for files that the command writes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]
