"""Labelled texts and contrastive pairs of safety concepts: read, checked, hashed, split.

A concept file is JSONL or CSV, or a data set of the Hugging Face hub by name, one text a row:

    {"text": "how to build a bomb", "label": 1, "concept": "weapons", "pair": "17"}

`text` and `label` are needed (1, true or positive; 0, false or negative). `concept` is the file's name where it is
missing; `domain` and `category` come from the taxonomy where they are missing; `pair` joins two or more rows that may
not be torn apart, such as a text and the same text without the concept.
"""

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np

from safe_sail.data.hub import dataset_name, dataset_rows
from safe_sail.data.taxonomy import DEFAULT, Taxonomy
from safe_sail.errors import BadInput, CorpusUnreadable, EmptyConcept

_LABELS: Final = {
    "1": True, "true": True, "positive": True,
    "0": False, "false": False, "negative": False,
}  # fmt: skip


class LabelledText(NamedTuple):
    """One text."""

    text: str
    is_positive: bool
    """Whether the concept is in it."""
    pair: str | None = None
    """Texts with one pair name belong together."""


@dataclass(frozen=True, kw_only=True)
class ConceptDataset:
    """The texts of one concept, both classes present."""

    concept: str
    domain: str
    category: str
    rows: tuple[LabelledText, ...]
    split: str = "all"
    """Which part of the data this is."""
    source: str
    """Where the texts come from."""

    def __post_init__(self) -> None:
        n_positive = sum(self.is_positive)
        if not 0 < n_positive < len(self.rows):
            raise EmptyConcept(
                f"concept `{self.concept}`, split `{self.split}` of {self.source}: both classes need texts; got "
                f"{n_positive} positive and {len(self.rows) - n_positive} negative."
            )
        labels: dict[str, bool] = {}
        for row in self.rows:
            if labels.setdefault(_plain(row.text), row.is_positive) != row.is_positive:
                raise BadInput(f"concept `{self.concept}` of {self.source}: {row.text[:60]!r} has both labels.")

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, in order."""
        return tuple(row.text for row in self.rows)

    @property
    def is_positive(self) -> tuple[bool, ...]:
        """Labels of `texts`."""
        return tuple(row.is_positive for row in self.rows)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(positive, negative) texts of every pair name that has exactly one of each, in order of first appearance."""
        by_name: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for row in self.rows:
            if row.pair is not None:
                by_name[row.pair][0 if row.is_positive else 1].append(row.text)
        return tuple((p[0], n[0]) for p, n in by_name.values() if len(p) == len(n) == 1)

    @cached_property
    def sha256(self) -> str:
        """Hash of concept, place and rows in order; neither of split nor of source."""
        content = [self.concept, self.domain, self.category, [list(row) for row in self.rows]]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def divided(self, fractions: Mapping[str, float], *, generator: np.random.Generator) -> dict[str, Self]:
        """Parts by name, drawn at random; fractions add up to 1.

        Pairs stay together, and so do texts that differ in case and white space only. Within the groups of positive,
        of negative and of mixed content each part gets its share, rounded at the cumulative bounds.

        Raises:
            BadInput: the fractions are not positive or do not add up to 1.
            EmptyConcept: a part would lack a class.
        """
        if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1):
            raise BadInput(f"fractions are positive and add up to 1; got {dict(fractions)}.")
        by_kind: dict[tuple[bool, ...], list[list[int]]] = defaultdict(list)
        for group in _groups(self.rows):
            by_kind[tuple(sorted({self.rows[row].is_positive for row in group}))].append(group)
        chosen: dict[str, list[int]] = {name: [] for name in fractions}
        for kind in sorted(by_kind):
            groups = by_kind[kind]
            order = generator.permutation(len(groups))
            bounds = np.rint(np.cumsum([0.0, *fractions.values()]) * len(groups)).astype(int)
            for name, start, stop in zip(fractions, bounds, bounds[1:], strict=False):
                chosen[name].extend(row for place in order[start:stop] for row in groups[place])
        return {
            name: replace(self, rows=tuple(self.rows[row] for row in sorted(rows)), split=name)
            for name, rows in chosen.items()
        }


def read_concepts(source: Path | str, *, taxonomy: Taxonomy = DEFAULT) -> list[ConceptDataset]:
    """The concepts of a JSONL or CSV file, or of a data set by name, in order of first appearance.

    Raises:
        CorpusUnreadable: the file is missing, empty or malformed; the message names the line.
        EmptyConcept: a concept has texts of one class only.
    """
    by_concept: dict[str, list[LabelledText]] = defaultdict(list)
    places: dict[str, tuple[str, str]] = {}
    path, rows = _rows_of(source)
    for line, row in rows:
        where = f"`{source}` line {line}"
        pair = row.get("pair")
        labelled = LabelledText(
            _text_of(row, "text", where), _label_of(row, where), None if pair in (None, "") else str(pair)
        )
        concept = _text_of(row, "concept", where, default=path.stem)
        place = _place_of(row, concept, where, taxonomy)
        if places.setdefault(concept, place) != place:
            raise CorpusUnreadable(f"{where}: `{concept}` stands in {place} here and in {places[concept]} before.")
        by_concept[concept].append(labelled)
    if not by_concept:
        raise CorpusUnreadable(f"`{source}` holds no rows; expected one text a row with `text` and `label`.")
    try:
        return [
            ConceptDataset(
                concept=concept,
                domain=places[concept][0],
                category=places[concept][1],
                rows=tuple(texts),
                source=path.name,
            )
            for concept, texts in by_concept.items()
        ]
    except EmptyConcept:
        raise
    except BadInput as error:
        raise CorpusUnreadable(f"`{source}`: {error}") from error


class ConceptText(NamedTuple):
    """One text that has a concept, and the concept's place."""

    concept: str
    domain: str
    category: str
    text: str

    @property
    def name(self) -> str:
        """Names the pair that is made of it: a hash of concept and text."""
        return hashlib.sha256(f"{self.concept}\0{self.text}".encode()).hexdigest()[:16]


def read_concept_texts(source: Path | str, *, taxonomy: Taxonomy = DEFAULT) -> list[ConceptText]:
    """The texts of a file or data set that have their concept: rows without a label, and rows with a positive one.

    Raises:
        CorpusUnreadable: the file is missing, malformed, or holds no such text; the message names the line.
    """
    found = []
    path, rows = _rows_of(source)
    for line, row in rows:
        where = f"`{source}` line {line}"
        if row.get("label") in (None, "") or _label_of(row, where):
            concept = _text_of(row, "concept", where, default=path.stem)
            domain, category = _place_of(row, concept, where, taxonomy)
            found.append(ConceptText(concept, domain, category, _text_of(row, "text", where)))
    if not found:
        raise CorpusUnreadable(f"`{source}` holds no text of a concept; expected rows with `text` and `concept`.")
    return found


def _rows_of(source: Path | str) -> tuple[Path, Iterator[tuple[int, Mapping[str, Any]]]]:
    """The path or the data set's name as a path, and (number from 1, row) of every row."""
    dataset = dataset_name(str(source))
    if dataset is None:
        return Path(source), _read_rows(Path(source))
    return Path(dataset.path), enumerate(dataset_rows(dataset), start=1)


def _read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number from 1, row) of every row that is not blank."""
    if path.suffix not in (".jsonl", ".csv"):
        raise CorpusUnreadable(f"`{path}` is neither .jsonl nor .csv; write one text a row in one of the two.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row:
                        raise CorpusUnreadable(
                            f"`{path}` line {reader.line_num}: more cells than the header has names "
                            f"({', '.join(reader.fieldnames or ())})."
                        )
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _json_row(path, number, line)
    except OSError as error:
        raise CorpusUnreadable(f"`{path}` cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusUnreadable(f"`{path}` is not {path.suffix[1:]} in UTF-8: {error}") from error


def _json_row(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusUnreadable(f"`{path}` line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CorpusUnreadable(
            f"`{path}` line {number}: expected an object with `text` and `label`, got {line[:60]!r}."
        )
    return row


def _text_of(row: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = row.get(key)
    if value in (None, "") and default is not None:
        return default
    if not isinstance(value, str) or not value.strip():
        raise CorpusUnreadable(f"{where}: `{key}` must be a text, got {value!r}.")
    return value


def _label_of(row: Mapping[str, Any], where: str) -> bool:
    label = _LABELS.get(str(row.get("label")).strip().lower())
    if label is None:
        raise CorpusUnreadable(f"{where}: `label` must be one of {', '.join(_LABELS)}, got {row.get('label')!r}.")
    return label


def _place_of(row: Mapping[str, Any], concept: str, where: str, taxonomy: Taxonomy) -> tuple[str, str]:
    domain, category = row.get("domain"), row.get("category")
    if domain and category:
        return str(domain), str(category)
    try:
        found = taxonomy.place(str(category or concept))
    except BadInput as error:
        raise CorpusUnreadable(f"{where}: {error} Give `domain` and `category`, or a taxonomy that has it.") from error
    if domain and domain != found.domain:
        raise CorpusUnreadable(f"{where}: `{found.category}` stands in `{found.domain}`, the row says `{domain}`.")
    return found.domain, found.category


def _groups(rows: Sequence[LabelledText]) -> list[list[int]]:
    """Row numbers that may not be torn apart, by order of their first row."""
    leader = list(range(len(rows)))
    first: dict[tuple[str, str], int] = {}

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for number, row in enumerate(rows):
        keys = [("text", _plain(row.text))] + ([("pair", row.pair)] if row.pair is not None else [])
        for key in keys:
            one, other = find(first.setdefault(key, number)), find(number)
            leader[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(rows)):
        groups[find(number)].append(number)
    return list(groups.values())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
