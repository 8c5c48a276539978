"""The organism's safety concepts as labelled texts: what SAEs are scored on when no other data is given."""

import random
from collections.abc import Iterator

from safe_sail.data.concepts import ConceptDataset, ConceptText, LabelledText
from safe_sail.errors import BadSettings
from safe_sail.organism.grammar import Split, contrastive_pairs
from safe_sail.organism.lexicon import HARMFUL
from safe_sail.records import Concept


def organism_concepts() -> list[Concept]:
    """The harmful concepts, in the taxonomy's order."""
    return [Concept(name=c.name, category=c.category, domain=c.domain, harmful=True) for c in HARMFUL]


def concept_dataset(concept: str, split: Split, *, n: int, seed: int) -> ConceptDataset:
    """n texts about the concept and n without it, of one split.

    Half of the negatives are the twins of positives, with a harmless filler in the same sentence; the other half are
    about other harmful concepts, so that a feature of harm in general is not specific to any.

    Raises:
        BadSettings: the grammar has fewer than n different texts of this concept and split.
    """
    positives = _distinct(concept, split, n=n, seed=seed)
    twins = positives[: n - n // 2]
    others = [other.name for other in HARMFUL if other.name != concept]
    generator = random.Random(f"negatives/{concept}/{split}/{seed}")
    rows = [LabelledText(about, True, str(place)) for place, (about, _) in enumerate(positives)]
    taken = {about for about, _ in positives}
    for place, (_, without) in enumerate(twins):
        rows.append(LabelledText(without, False, str(place)))
        taken.add(without)
    while len(rows) < 2 * n:
        # Another seed per draw: a concept's pairs of one seed are always the same.
        ((about, _),) = contrastive_pairs(generator.choice(others), split, 1, generator.randrange(2**31))
        if about.text not in taken:
            taken.add(about.text)
            rows.append(LabelledText(about.text, False))
    place_in = next(c for c in HARMFUL if c.name == concept)
    return ConceptDataset(
        concept=concept,
        domain=place_in.domain,
        category=place_in.category,
        rows=tuple(rows),
        split=split,
        source=f"organism grammar, seed {seed}",
    )


def concept_pairs(*, n: int, seed: int) -> Iterator[tuple[ConceptText, str]]:
    """n pairs of every harmful concept: a text that has it, and the same text with a harmless thing in its place.

    Half of them have words and sentences of each split of the grammar.
    """
    shares: tuple[tuple[Split, int], ...] = (("train", n - n // 2), ("held_out", n // 2))
    for concept in HARMFUL:
        for split, share in shares:
            for about, without in _distinct(concept.name, split, n=share, seed=seed) if share else ():
                yield ConceptText(concept.name, concept.domain, concept.category, about), without


def _distinct(concept: str, split: Split, *, n: int, seed: int) -> list[tuple[str, str]]:
    """n contrastive pairs without a repeated text."""
    found: dict[str, str] = {}
    draws = n
    while len(found) < n:
        if draws > 64 * n:
            raise BadSettings(
                f"concept `{concept}`, split `{split}`: expected {n} different pairs, the grammar gave {len(found)} in "
                f"{draws} draws. Ask for fewer texts."
            )
        draws *= 2
        pairs = contrastive_pairs(concept, split, draws, seed)
        found = {}
        for about, without in pairs:
            if about.text not in found and without.text not in found.values():
                found[about.text] = without.text
    return list(found.items())[:n]
