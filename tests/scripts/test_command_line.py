"""The command line: quick help, honest errors."""

import subprocess
import sys
from importlib import import_module

import pytest

from scripts.main import COMMANDS


def safe_sail(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scripts.main", *words], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_is_quick_since_it_imports_next_to_nothing():
    """How many seconds it takes is in benchmarks/bench_start.py."""
    probe = (
        "import sys; from scripts.main import main; sys.argv = ['safe-sail', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout
    imported = done.stderr.split()
    assert not {"torch", "transformers", "sae_lens", "sqlalchemy", "fastapi", "pydantic", "numpy"} & set(imported)
    assert len(imported) < 300, "typer and the interpreter's own; the least of our libraries would bring hundreds"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str):
    row = COMMANDS[name]
    assert callable(getattr(import_module(row.module), row.function))


def test_unknown_command_is_named():
    done = safe_sail("nope")
    assert done.returncode == 2
    assert "nope" in done.stderr
