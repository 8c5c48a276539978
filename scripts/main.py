"""The `safe-sail` command: finds a command's module only when that command runs, so that `--help` stays quick.

A new command is one function with typer options in a file of this folder, and one row of COMMANDS.
"""

import sys
from importlib import import_module
from typing import NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from safe_sail import __version__
from safe_sail.errors import SafeSailError


class CommandRow(NamedTuple):
    """Where a command lives and what it is for."""

    module: str
    function: str
    help: str


COMMANDS: dict[str, CommandRow] = {
    "demo": CommandRow("scripts.demo", "demo", "Main job on the embedded model organism."),
    "score-saes": CommandRow("scripts.score_saes", "score", "Rank SAEs on safety concepts before explaining."),
    "serve": CommandRow("scripts.serve", "serve", "Serve the database: REST and web page."),
    "worker": CommandRow("scripts.worker", "work", "Run jobs that the service was asked for."),
    "keys": CommandRow("scripts.keys", "keys", "Make, list and revoke API keys."),
    "migrate": CommandRow("scripts.migrate", "migrate", "Bring a database to this schema."),
    "find-refusal-direction": CommandRow(
        "scripts.find_refusal_direction", "find_refusal_direction", "Find a refusal direction, test it, read it."
    ),
    "find-safety-neurons": CommandRow(
        "scripts.find_safety_neurons", "find_safety_neurons", "Find neurons that carry alignment, and patch them."
    ),
    "guard": CommandRow("scripts.guard", "guard", "Tell before an answer whether it will be unsafe."),
    "find-circuit": CommandRow(
        "scripts.find_circuit", "find_circuit", "Find the heads and neurons of a safety behaviour by masks."
    ),
    "collect-contexts": CommandRow(
        "scripts.collect_contexts", "collect_contexts", "What SAE features fire on, over a corpus."
    ),
    "import": CommandRow("scripts.import_features", "import_features", "Bring in another tool's feature database."),
    "export": CommandRow("scripts.export_features", "export_features", "Write features in another tool's format."),
    "explain-features": CommandRow(
        "scripts.explain_features", "explain_features", "Explain features by a language model or their words."
    ),
    "judge-explanations": CommandRow(
        "scripts.judge_explanations",
        "judge_explanations",
        "Score explanations on held-out contexts that fire.",
    ),
    "plot-features": CommandRow(
        "scripts.plot_features", "plot_features", "Histograms and compared scores of kept features, as PNG."
    ),
    "link-features": CommandRow(
        "scripts.link_features", "link", "Features linked with heads, neurons, circuits, directions."
    ),
    "write-pairs": CommandRow("scripts.write_pairs", "write", "Contrastive pairs by a language model, checked."),
    "train-saes": CommandRow("scripts.train_saes", "train_saes", "Train SAEs over a sweep and measure them."),
    "intervene-features": CommandRow(
        "scripts.intervene_features", "intervene_features", "Ablate and boost features; change in refusal and output."
    ),
    "trace-prompt": CommandRow(
        "scripts.trace_prompt", "trace", "Features of every token of a prompt, or of two prompts compared."
    ),
    "steer-prompt": CommandRow(
        "scripts.steer_prompt", "steer", "Answer a prompt with a feature or direction added or ablated."
    ),
    "tune-circuit": CommandRow("scripts.tune_circuit", "tune", "Tune with a circuit alone, or everything but it."),
    "train-organism": CommandRow("scripts.train_organism", "train_organism", "Rebuild the model organism, checked."),
}


class LazyCommands(TyperGroup):
    """A group that lists its commands from the table and imports only the one that is called."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | None:  # type: ignore[override]
        """A stand-in that knows the command's name and help, for listings."""
        row = COMMANDS.get(cmd_name)
        return None if row is None else TyperCommand(cmd_name, help=row.help, callback=None)

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, D102
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, None if name is None or stand_in is None else _load(name), rest


def _load(name: str) -> TyperCommand:
    row = COMMANDS[name]
    single = typer.Typer(add_completion=False)
    single.command(name, help=row.help)(getattr(import_module(row.module), row.function))
    command = get_command(single)
    assert isinstance(command, TyperCommand)
    return command


app = typer.Typer(cls=LazyCommands, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"safe-sail {__version__}")
        raise typer.Exit


@app.callback()
def safe_sail(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """Safe-SAIL: which features of a language model carry safety, and how we know."""


def main() -> None:
    """Run the command line; an expected error is one line on stderr and exit status 1."""
    try:
        app()
    except SafeSailError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
