"""The tutorial's commands exist and take the options that it gives them."""

import re
import shlex
from pathlib import Path

import pytest

from scripts.main import COMMANDS, _load

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_tutorial_is_understood(line: str):
    program, name, *words = shlex.split(line)
    assert program == "safe-sail"
    assert name in COMMANDS
    if words == ["--help"]:
        return
    # parsing checks names, types and ranges of options, and runs nothing
    context = _load(name).make_context(name, list(words), resilient_parsing=False)
    assert context.info_name == name


def test_every_step_of_the_main_job_is_in_it():
    named = {shlex.split(line)[1] for line in LINES}
    assert {"score-saes", "collect-contexts", "explain-features", "judge-explanations", "intervene-features"} <= named


def test_an_option_that_does_not_exist_is_noticed():
    with pytest.raises(Exception, match="No such option"):
        _load("explain-features").make_context("explain-features", ["--no-such-option"], resilient_parsing=False)
