"""What the docs say is true: files exist, commands exist, links lead somewhere, Python blocks run."""

import re
import shlex
from pathlib import Path

import pytest

from scripts.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def layout() -> dict[str, str]:
    """Path -> what it holds, from the block under "Rooms" of the architecture page."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = re.search(r"## Rooms\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    rows = [line.split(maxsplit=1) for line in block[1].splitlines() if line.strip()]
    return {path: says for path, says in rows}


def test_every_file_of_the_layout_exists_and_every_file_is_in_the_layout():
    named = {path for path in layout() if path.endswith(".py")}
    there = {
        str(path.relative_to(ROOT))
        for room in ("safe_sail", "db", "api", "scripts")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py" and "versions" not in path.parts
    }
    assert named - there == set(), "the page names files that do not exist"
    assert there - named == set(), "the page lacks files"
    for path in layout():
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_docs_exist(page: Path):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                targets = {word for word in words[1:] if "=" not in word}
                assert targets <= MAKE_TARGETS, line
            if "safe-sail" in words[:1]:
                assert words[1] in COMMANDS or words[1].startswith("--"), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile(page: Path):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
