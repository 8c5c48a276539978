"""House rules that import contracts cannot see: where a thing may be named at all."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for room in ("safe_sail", "db", "api", "scripts")
    for path in (ROOT / room).rglob("*.py")
}
MAX_LINES = 350


def files_that_match(pattern: str) -> set[str]:
    return {name for name, text in SOURCES.items() if re.search(pattern, text, re.MULTILINE)}


def test_sae_lens_is_imported_in_its_room_only():
    assert files_that_match(r"^\s*(import|from) sae_lens") <= {
        "safe_sail/sae/load.py",
        "safe_sail/sae/train.py",
        "safe_sail/sae/stream.py",
        "safe_sail/sae/size.py",
    }
    assert not files_that_match(r"^(import|from) (sae_lens|transformer_lens)"), (
        "it costs seconds: import inside functions"
    )


def test_models_are_loaded_at_one_door():
    assert files_that_match(r"AutoModel\w*\.from_pretrained") == {"safe_sail/model/load.py"}


def test_the_environment_is_read_at_three_doors():
    assert files_that_match(r"os\.environ|os\.getenv|envvar=|BaseSettings\b") <= {
        "api/settings.py",
        "safe_sail/client/service.py",
        "scripts/options.py",
    }


def test_no_remote_code_and_no_pickle():
    assert not files_that_match(r"trust_remote_code\s*=\s*True")
    assert not files_that_match(r"^\s*(import|from) pickle")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_files_are_short_enough_to_read(name: str):
    assert SOURCES[name].count("\n") <= MAX_LINES, f"{name}: split it by idea, not by size"
