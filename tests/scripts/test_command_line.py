"""The command line: quick help, honest errors."""

import subprocess
import sys
from importlib import import_module

import pytest

from scripts.main import COMMANDS


def safe_sail(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scripts.main", *words], capture_output=True, text=True, check=False)


def test_help_lists_every_command_without_importing_any():
    probe = (
        "import sys; from scripts.main import main; sys.argv = ['safe-sail', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'sae_lens', 'sqlalchemy', 'fastapi'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert name in done.stdout


def test_help_is_quick():
    # The floor is the interpreter itself; the bar (half a second on a quiet machine) is measured in CPU seconds.
    best = min(_child_cpu_seconds("--help") for _ in range(3))
    assert best < 0.5


def _child_cpu_seconds(*words: str) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    safe_sail(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str):
    row = COMMANDS[name]
    assert callable(getattr(import_module(row.module), row.function))


def test_unknown_command_is_named():
    done = safe_sail("nope")
    assert done.returncode == 2
    assert "nope" in done.stderr
