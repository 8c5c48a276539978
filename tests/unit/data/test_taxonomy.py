"""The default taxonomy, a user's own, and what is refused."""

from pathlib import Path

import pytest

from safe_sail.data.taxonomy import DEFAULT, Place, Taxonomy, read_taxonomy
from safe_sail.errors import BadInput, CorpusUnreadable

OWN = {"violence": {"weapons": ("bombs", "guns"), "insult": ()}, "fraud": {"phishing": ()}}


def test_default_has_four_domains_and_seventeen_categories() -> None:
    assert list(DEFAULT.domains) == ["politics", "pornography", "violence", "terror"]
    assert len(DEFAULT.categories) == 17
    assert DEFAULT.place("weapons") == Place("terror", "weapons")


def test_concept_and_category_have_a_place() -> None:
    taxonomy = Taxonomy(OWN)

    assert taxonomy.place("guns") == taxonomy.place("weapons") == Place("violence", "weapons")
    assert taxonomy.categories == {"weapons": "violence", "insult": "violence", "phishing": "fraud"}


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(BadInput, match=r"no `bomb`\. Close names: bombs"):
        Taxonomy(OWN).place("bomb")
    with pytest.raises(BadInput, match="Its categories: weapons, insult, phishing"):
        Taxonomy(OWN).place("zzzzz")


@pytest.mark.parametrize(
    "domains", [{}, {"a": {}}, {"a": {"x": ()}, "b": {"x": ()}}, {"a": {"x": ("y",), "z": ("y",)}}]
)
def test_taxonomy_that_contradicts_itself_is_refused(domains: dict[str, dict[str, tuple[str, ...]]]) -> None:
    with pytest.raises(BadInput):
        Taxonomy(domains)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.yaml", "violence:\n  weapons: [bombs, guns]\n  insult:\nfraud:\n  phishing: []\n"),
        ("own.json", '{"violence": {"weapons": ["bombs", "guns"], "insult": []}, "fraud": {"phishing": []}}'),
    ],
)
def test_file_is_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    assert read_taxonomy(tmp_path / name) == Taxonomy(OWN)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file must map"),
        ("[1, 2]", "the file must map"),
        ("violence: weapons", "violence must map"),
        ("violence: {weapons: bombs}", "violence > weapons must list"),
        ("violence: {weapons: [1]}", "violence > weapons must list"),
        ("violence: {weapons: [", "is not yaml"),
        ("violence: {}", "every domain a category"),
        ("a: {x: []}\nb: {x: []}", "a name has one place"),
        ("!!python/object/apply:os.getcwd []", "is not yaml"),
    ],
)
def test_malformed_file_says_where(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)

    with pytest.raises(CorpusUnreadable, match=says):
        read_taxonomy(tmp_path / "own.yaml")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusUnreadable, match=r"none\.yaml` cannot be read"):
        read_taxonomy(tmp_path / "none.yaml")
