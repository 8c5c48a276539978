"""Labelled texts of concepts as commands read them: files and data sets, or the organism's own; in two parts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safe_sail.data.concepts import read_concepts
from safe_sail.data.taxonomy import DEFAULT, read_taxonomy
from safe_sail.errors import BadInput
from safe_sail.features.score import ConceptSplits
from safe_sail.organism.concept_data import concept_dataset, organism_concepts
from safe_sail.records import Concept


def concept_splits(
    files: Sequence[str | Path] | None, taxonomy: Path | None, *, n_choose: int, n_judge: int, seed: int
) -> list[ConceptSplits]:
    """Texts of every concept that choose and that judge: halves of the files, or as many of the organism's as asked.

    Raises:
        CorpusUnreadable: a file is missing, empty or malformed.
        EmptyConcept: a part of a concept would lack a class.
        BadInput: two files hold one concept.
    """
    if files is None:
        return [
            ConceptSplits(
                concept_dataset(concept.name, "train", n=n_choose, seed=seed),
                concept_dataset(concept.name, "held_out", n=n_judge, seed=seed),
            )
            for concept in organism_concepts()
        ]
    places = DEFAULT if taxonomy is None else read_taxonomy(taxonomy)
    generator = np.random.default_rng(seed)
    found = []
    for path in files:
        for whole in read_concepts(path, taxonomy=places):
            parts = whole.divided({"choose": 0.5, "judge": 0.5}, generator=generator)
            found.append(ConceptSplits(parts["choose"], parts["judge"]))
    names = [one.judge.concept for one in found]
    if len(set(names)) < len(names):
        raise BadInput(f"a concept comes from one file; got {', '.join(sorted(names))}. Join the files.")
    return found


def concepts_of(splits: Sequence[ConceptSplits]) -> list[Concept]:
    """The concepts of these texts, as records."""
    return [
        Concept(name=one.judge.concept, category=one.judge.category, domain=one.judge.domain, harmful=True)
        for one in splits
    ]
