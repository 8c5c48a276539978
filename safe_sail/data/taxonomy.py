"""Safety concepts in three levels: domain > category > concept; the default, and a reader of a user's own.

A taxonomy file is YAML or JSON: a mapping from domains to mappings from categories to lists of concepts.

    violence:
      weapons: [bombs, guns]
      insult: []
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from safe_sail.errors import BadInput, CorpusUnreadable


class Place(NamedTuple):
    """Where a concept stands."""

    domain: str
    category: str


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Domains, their categories, and the categories' concepts; every category and every concept stands in one place."""

    domains: Mapping[str, Mapping[str, tuple[str, ...]]]

    def __post_init__(self) -> None:
        if not self.domains or not all(self.domains.values()):
            raise BadInput("a taxonomy needs a domain and every domain a category; got an empty one.")
        seen: dict[str, str] = {}
        for domain, categories in self.domains.items():
            for category, concepts in categories.items():
                for name in (category, *(concept for concept in concepts if concept != category)):
                    where = f"{domain} > {category}"
                    if name in seen:
                        raise BadInput(f"`{name}` stands in `{seen[name]}` and in `{where}`; a name has one place.")
                    seen[name] = where

    @property
    def categories(self) -> dict[str, str]:
        """Category -> domain, in order."""
        return {category: domain for domain, categories in self.domains.items() for category in categories}

    def place(self, name: str) -> Place:
        """Domain and category of a concept or a category.

        Raises:
            BadInput: the taxonomy has no such name; the message lists close ones.
        """
        for domain, categories in self.domains.items():
            for category, concepts in categories.items():
                if name == category or name in concepts:
                    return Place(domain, category)
        names = [*self.categories, *(c for cs in self.domains.values() for concepts in cs.values() for c in concepts)]
        close = get_close_matches(name, names, n=3)
        hint = f"Close names: {', '.join(close)}." if close else f"Its categories: {', '.join(self.categories)}."
        raise BadInput(f"the taxonomy has no `{name}`. {hint}")


DEFAULT: Final = Taxonomy(
    {
        "politics": {"political figure": (), "political event": (), "ideology": (), "cult": ()},
        "pornography": {
            "sexual behaviour": (),
            "sexual abuse": (),
            "sexual health": (),
            "intimate relationship": (),
        },
        "violence": {
            "insult": (),
            "physical violence": (),
            "criminal offence": (),
            "cybersecurity": (),
            "conflict incident": (),
        },
        "terror": {"terrorism": (), "religious oppression": (), "extremist activities": (), "weapons": ()},
    }
)
"""The four domains and seventeen categories of arXiv 2509.18127, taxonomy figure; concepts are the user's to add."""


def read_taxonomy(path: Path) -> Taxonomy:
    """The taxonomy in a YAML or JSON file.

    Raises:
        CorpusUnreadable: the file is missing, is neither YAML nor JSON, or has another form; the message says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loaded = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise CorpusUnreadable(f"taxonomy `{path}` cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise CorpusUnreadable(f"taxonomy `{path}` is not {path.suffix.lstrip('.') or 'YAML'}: {error}") from error
    try:
        return Taxonomy(
            {
                domain: {
                    category: _concepts(path, f"{domain} > {category}", concepts)
                    for category, concepts in _mapping(path, domain, categories).items()
                }
                for domain, categories in _mapping(path, "the file", loaded).items()
            }
        )
    except CorpusUnreadable:
        raise
    except BadInput as error:
        raise CorpusUnreadable(f"taxonomy `{path}`: {error}") from error


def _mapping(path: Path, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) and key.strip() for key in value):
        raise CorpusUnreadable(
            f"taxonomy `{path}`: {where} must map names to what stands below them, got {type(value).__name__} "
            f"{str(value)[:60]!r}."
        )
    return value


def _concepts(path: Path, where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise CorpusUnreadable(f"taxonomy `{path}`: {where} must list names of concepts, got {str(value)[:60]!r}.")
    return tuple(value)
