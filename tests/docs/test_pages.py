"""What the docs say is true: files exist, commands exist, links lead somewhere, Python blocks run."""

import ast
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


def layout() -> str:
    """The block under "Rooms" of the architecture page, as the files' own first sentences make it."""
    rows = []
    for room in ("safe_sail", "db", "api", "scripts"):
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.name != "__init__.py" and "versions" not in path.parts:
                says = ast.get_docstring(ast.parse(path.read_text())) or ""
                first = " ".join(says.split("\n\n")[0].split())
                rows.append(f"{path.relative_to(ROOT)!s:41} {first}")
    return "\n".join(rows)


LAYOUT = re.compile(r"(## Rooms\n.*?```\n)(.*?)(\n```)", re.DOTALL)


def test_the_layout_says_what_the_files_say():
    found = LAYOUT.search((ROOT / "docs/architecture.md").read_text())
    assert found is not None
    assert found[2] == layout(), "write it anew: python -m tests.docs.test_pages"


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


if __name__ == "__main__":
    page = ROOT / "docs/architecture.md"
    page.write_text(LAYOUT.sub(lambda found: found[1] + layout() + found[3], page.read_text()))
