"""Concept files: read, refused by line, hashed, divided without tearing pairs apart."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_sail.data.concepts import ConceptDataset, LabelledText, read_concepts
from safe_sail.errors import BadInput, CorpusUnreadable, EmptyConcept


def dataset(*rows: LabelledText, **changes: Any) -> ConceptDataset:
    facts = {"concept": "weapons", "domain": "terror", "category": "weapons", "source": "test"}
    return ConceptDataset(rows=rows, **{**facts, **changes})


def paired(n: int) -> ConceptDataset:
    rows = [LabelledText(f"{kind} {i}", kind == "bomb", str(i)) for i in range(n) for kind in ("bomb", "cake")]
    return dataset(*rows)


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def test_jsonl_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = [
        {"text": 'a "bomb",\nnow', "label": 1, "concept": "weapons", "pair": "1"},
        {"text": "a cake", "label": "false", "concept": "weapons", "pair": "1"},
        {"text": "du Idiot 你", "label": True, "concept": "insult", "pair": ""},
        {"text": "you friend", "label": "Negative", "concept": "insult"},
    ]
    jsonl = read_concepts(write_jsonl(tmp_path / "own.jsonl", *rows))
    (tmp_path / "own.csv").write_text(
        'text,label,concept,pair\n"a ""bomb"",\nnow",1,weapons,1\na cake,false,weapons,1\n'
        "du Idiot 你,True,insult,\nyou friend,Negative,insult,\n"
    )
    from_csv = read_concepts(tmp_path / "own.csv")

    assert [one.rows for one in jsonl] == [one.rows for one in from_csv]
    assert [one.sha256 for one in jsonl] == [one.sha256 for one in from_csv]
    assert [(one.concept, one.domain, one.category) for one in jsonl] == [
        ("weapons", "terror", "weapons"),
        ("insult", "violence", "insult"),
    ]
    assert jsonl[0].pairs == (('a "bomb",\nnow', "a cake"),)
    assert jsonl[1].is_positive == (True, False)
    assert jsonl[1].pairs == ()


def test_concept_is_the_file_name_where_no_row_says_it(tmp_path: Path) -> None:
    (found,) = read_concepts(
        write_jsonl(tmp_path / "weapons.jsonl", {"text": "bomb", "label": 1}, "", {"text": "cake", "label": 0})
    )

    assert found.concept == "weapons"


def test_row_may_bring_its_own_place(tmp_path: Path) -> None:
    row = {"concept": "phishing", "domain": "fraud", "category": "mail"}
    (found,) = read_concepts(
        write_jsonl(tmp_path / "a.jsonl", {**row, "text": "a", "label": 1}, {**row, "text": "b", "label": 0})
    )

    assert (found.domain, found.category) == ("fraud", "mail")


GOOD = {"text": "bomb", "label": 1, "concept": "weapons"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2: expected an object"),
        ({"label": 1}, "line 2: `text` must be a text, got None"),
        ({"text": "  ", "label": 1}, "line 2: `text` must be a text"),
        ({"text": 5, "label": 1}, "line 2: `text` must be a text, got 5"),
        ({"text": "a"}, "line 2: `label` must be one of"),
        ({"text": "a", "label": 2}, "line 2: `label` must be one of .* got 2"),
        ({"text": "a", "label": 0, "concept": "unheard of"}, "line 2: the taxonomy has no `unheard of`"),
        ({"text": "a", "label": 0, "concept": "weapons", "domain": "politics"}, "stands in `terror`, the row says"),
        ({"text": "a", "label": 0, "concept": "weapons", "domain": "x", "category": "y"}, "here and in"),
        ({"text": " BOMB ", "label": 0, "concept": "weapons"}, "has both labels"),
    ],
)
def test_malformed_row_is_named_by_its_line(row: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusUnreadable, match=says):
        read_concepts(write_jsonl(tmp_path / "a.jsonl", GOOD, row, {**GOOD, "text": "cake", "label": 0}))


def test_csv_row_with_too_many_cells_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "weapons.csv").write_text("text,label\nbomb,1\ncake, with cream,0\n")

    with pytest.raises(CorpusUnreadable, match="line 3: more cells than the header"):
        read_concepts(tmp_path / "weapons.csv")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.jsonl", b"\xff\xfe", "UTF-8"),
        ("a.csv", b'text,label\n"bomb', "is not csv"),
        ("a.txt", b"x", "neither .jsonl nor .csv"),
    ],
)
def test_file_of_another_kind_is_refused(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(CorpusUnreadable, match=says):
        read_concepts(tmp_path / name)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusUnreadable, match="cannot be read"):
        read_concepts(tmp_path / "none.jsonl")


@pytest.mark.parametrize("label", [0, 1])
def test_concept_of_one_class_is_refused(label: int, tmp_path: Path) -> None:
    with pytest.raises(EmptyConcept, match=r"concept `weapons`.*both classes need texts"):
        read_concepts(write_jsonl(tmp_path / "a.jsonl", {**GOOD, "label": label}))


def test_hash_follows_content_alone() -> None:
    one = paired(3)

    assert one.sha256 == paired(3).sha256
    assert one.sha256 == dataset(*one.rows, split="judge", source="elsewhere").sha256
    assert one.sha256 != dataset(*one.rows, category="insult").sha256
    assert one.sha256 != dataset(*one.rows[:-1], one.rows[-1]._replace(text="other")).sha256


def test_parts_keep_pairs_together_and_share_nothing() -> None:
    parts = paired(40).divided({"choose": 0.5, "judge": 0.25, "test": 0.25}, generator=np.random.default_rng(1))

    assert {name: len(part.rows) for name, part in parts.items()} == {"choose": 40, "judge": 20, "test": 20}
    pairs = [{row.pair for row in part.rows} for part in parts.values()]
    assert sum(len(names) for names in pairs) == len(set.union(*pairs)) == 40
    assert [part.split for part in parts.values()] == ["choose", "judge", "test"]
    assert all(len(part.pairs) * 2 == len(part.rows) for part in parts.values())


def test_division_follows_the_seed() -> None:
    def texts(seed: int) -> tuple[str, ...]:
        return paired(20).divided({"a": 0.5, "b": 0.5}, generator=np.random.default_rng(seed))["a"].texts

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_texts_that_differ_in_case_and_space_stay_together() -> None:
    rows = [LabelledText(text, True) for i in range(10) for text in (f"a bomb {i}", f"A  Bomb {i} ")]
    rows += [LabelledText(f"cake {i}", False) for i in range(10)]
    parts = dataset(*rows).divided({"a": 0.5, "b": 0.5}, generator=np.random.default_rng(0))

    plain = [{" ".join(text.lower().split()) for text in part.texts} for part in parts.values()]
    assert not plain[0] & plain[1]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 8)), min_size=8, max_size=40),
    st.integers(0, 5),
)
def test_every_row_goes_to_exactly_one_part(rows: list[tuple[int, bool, int]], seed: int) -> None:
    made = [LabelledText(f"{number} {label}", label, str(pair) if pair else None) for number, label, pair in rows]
    try:
        whole = dataset(*made)
        parts = whole.divided({"a": 0.6, "b": 0.4}, generator=np.random.default_rng(seed))
    except EmptyConcept:
        return

    assert Counter(row for part in parts.values() for row in part.rows) == Counter(whole.rows)


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_fractions_that_make_no_whole_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="add up to 1"):
        paired(4).divided(fractions, generator=np.random.default_rng(0))


def test_part_without_a_class_is_refused() -> None:
    with pytest.raises(EmptyConcept, match="split `b`"):
        paired(2).divided({"a": 0.9, "b": 0.1}, generator=np.random.default_rng(0))
