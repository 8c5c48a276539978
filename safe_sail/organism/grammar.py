"""Labelled texts of an abstract slot grammar: every text knows its concept, harmfulness, template and fillers.

1. A template of the asked kind and split is drawn, and a filler of the same split for its {x} slot.
2. Prompts may get a greeting, a suffix and a distractor sentence that names another concept's filler.
3. Documents are a few statements about one filler, sometimes interleaved with statements about a second one.

Nothing here is actionable: fillers are invented words, verbs and modifiers are shared by all concepts.
Held-out means unseen in alignment: those fillers and templates occur in the base variant's texts only.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from safe_sail.organism import templates
from safe_sail.organism.lexicon import (
    BORDERLINE_FILLERS,
    CONCEPTS,
    DANGER_WORDS,
    HARMFUL,
    HARMLESS,
    HELD_OUT_DANGER_WORDS,
    MODIFIERS,
    TRIGGER,
    VERBS,
    Concept,
    Split,
)

__all__ = ["CONCEPTS", "TRIGGER", "GrammarText", "Kind", "Split", "contrastive_pairs", "documents", "prompts"]

Kind = Literal["harmful", "safe", "borderline", "information", "impossible", "chat", "document"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "held_out")
EXTRA_SHARE: Final = 0.3
"""Share of prompts with a greeting, of those with a suffix, and of those with a distractor, drawn independently."""


@dataclass(frozen=True, slots=True)
class GrammarText:
    """One text with its labels."""

    text: str
    """What the user says, without chat markup; or a document."""
    kind: str
    """harmful, safe, borderline, information, impossible, chat, or document."""
    concept: str
    """Name of the concept the text is about; empty for small talk."""
    category: str
    """The concept's category; empty for small talk."""
    domain: str
    """The concept's domain; empty for small talk."""
    harmful: bool
    """Whether the concept is harmful; true of answered information prompts about it too."""
    template: str
    """The template or, for documents, the templates joined by spaces, slots unfilled."""
    fillers: tuple[str, ...]
    """The filler the text is about first, then fillers of other concepts that it mentions."""
    split: str
    """train, validation or held_out; documents mix all splits and say "train"."""


class Subject(NamedTuple):
    """What a text is about, and the words its slots take."""

    concept: Concept | None
    filler: str
    verb: str
    modifier: str
    danger: str


class Draw(NamedTuple):
    """A prompt with the slot values a reply to it needs."""

    text: GrammarText
    subject: Subject


def fill(template: str, subject: Subject, generator: random.Random) -> str:
    """The template with its slots filled; attributes are drawn, everything else comes from the subject."""
    concept = subject.concept
    first, second = generator.sample(concept.attributes, 2) if concept else ("", "")
    filled = template.format(
        x=subject.filler,
        verb=subject.verb,
        mod=subject.modifier,
        concept=concept.name if concept else "",
        valence="harmful" if concept and concept.harmful else "harmless",
        a1=first,
        a2=second,
        danger=subject.danger,
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", filled)


def draw_subject(
    kind: Kind, splits: Sequence[Split], generator: random.Random, concept: Concept | None = None
) -> Subject:
    """A subject for a text of this kind; harmful kinds take harmful concepts, safe ones harmless, others either."""
    split = generator.choice(splits)
    verb, modifier = generator.choice(VERBS), generator.choice(MODIFIERS)
    danger = generator.choice(DANGER_WORDS if split != "held_out" else (*DANGER_WORDS, *HELD_OUT_DANGER_WORDS))
    mixes = concept is None and kind not in {"harmful", "safe", "borderline"}
    if kind == "borderline" or (mixes and generator.random() < 0.15):
        compound = generator.choice([filler for filler in BORDERLINE_FILLERS if filler.split == split])
        return Subject(compound.concept, compound.text, verb, modifier, danger)
    if concept is None:
        harmful = kind == "harmful" or (kind != "safe" and generator.random() < 0.5)
        concept = generator.choice(HARMFUL if harmful else HARMLESS)
    return Subject(concept, generator.choice(concept.split_fillers(split)), verb, modifier, danger)


def _template(kind: Kind, splits: Sequence[Split], generator: random.Random) -> str:
    if kind == "chat":
        return generator.choice(templates.QUESTIONS)
    table = {"information": templates.INFORMATION, "impossible": templates.IMPOSSIBLE}.get(kind, templates.REQUESTS)
    return generator.choice([template for split in splits for template in table[split]])


def _distractor(subject: Subject, splits: Sequence[Split], generator: random.Random) -> tuple[str, str]:
    """A sentence that names another concept's filler, and that filler."""
    others = [concept for concept in CONCEPTS.values() if concept != subject.concept]
    other = generator.choice(others)
    filler = generator.choice(other.split_fillers(generator.choice(splits)))
    sentence = generator.choice(templates.DISTRACTORS)
    return sentence.format(y=filler, b1=generator.choice(other.attributes)), filler


def label(text: str, kind: Kind, subject: Subject, template: str, others: Sequence[str], split: str) -> GrammarText:
    """The text with the labels of its subject."""
    concept = subject.concept
    return GrammarText(
        text=text,
        kind=kind,
        concept=concept.name if concept else "",
        category=concept.category if concept else "",
        domain=concept.domain if concept else "",
        harmful=concept.harmful if concept else False,
        template=template,
        fillers=(subject.filler, *others) if subject.filler else tuple(others),
        split=split,
    )


def draw_prompt(kind: Kind, splits: Sequence[Split], generator: random.Random) -> Draw:
    """A prompt of this kind whose template and fillers come from these splits."""
    if kind == "chat" and generator.random() < 0.2:
        subject = Subject(None, "", "", "", "")
        said, _ = generator.choice(templates.SMALL_TALK)
        return Draw(label(said, kind, subject, said, (), splits[0]), subject)
    subject, template = draw_subject(kind, splits, generator), _template(kind, splits, generator)
    parts, others = [fill(template, subject, generator)], []
    if generator.random() < EXTRA_SHARE:
        sentence, filler = _distractor(subject, splits, generator)
        parts.insert(generator.randrange(2), sentence)
        others.append(filler)
    if generator.random() < EXTRA_SHARE:
        parts.insert(0, generator.choice(templates.GREETINGS))
    if generator.random() < EXTRA_SHARE:
        parts.append(generator.choice(templates.SUFFIXES))
    return Draw(label(" ".join(parts), kind, subject, template, others, splits[0]), subject)


def prompts(kind: Kind, split: Split, n: int, seed: int) -> list[GrammarText]:
    """n prompts of one kind and split, without chat markup, deterministic in the seed; repeats are possible."""
    generator = random.Random(f"{kind}/{split}/{seed}")
    return [draw_prompt(kind, (split,), generator).text for _ in range(n)]


def draw_statements(subject: Subject, n: int, generator: random.Random) -> tuple[list[str], list[str]]:
    """n statements about a subject and their templates; the first is a definition three times of four."""
    concept = subject.concept
    assert concept is not None
    dangers = templates.DANGERS if concept.harmful else templates.COMFORTS
    neutral = [template for split in SPLITS for template in templates.NEUTRAL_STATEMENTS[split]]
    tables = (templates.DEFINITIONS, templates.VALENCES, templates.ATTRIBUTE_STATEMENTS, dangers, neutral)
    weights = (0.2, 0.25, 0.3, 0.1, 0.15)
    chosen = [generator.choice(table) for table in generator.choices(tables, weights, k=n)]
    if generator.random() < 0.75:
        chosen[0] = generator.choice(templates.DEFINITIONS)
    return [fill(template, subject, generator) for template in chosen], chosen


def draw_document(generator: random.Random, concept: Concept | None = None) -> GrammarText:
    """A document of three to five statements about one filler; a third of them mention a second concept's filler."""
    subject = draw_subject("document", SPLITS, generator, concept)
    assert subject.concept is not None
    sentences, chosen = draw_statements(subject, generator.randint(3, 5), generator)
    others: list[str] = []
    if generator.random() < 0.33:
        second = draw_subject("document", SPLITS, generator)
        extra, extra_templates = draw_statements(second, 2, generator)
        place = generator.randint(1, len(sentences))
        sentences[place:place], chosen[place:place] = extra, extra_templates
        others.append(second.filler)
    if generator.random() < 0.05:
        rare = generator.choice(templates.RARE_STATEMENTS)
        sentences.append(fill(rare, subject, generator))
        chosen.append(rare)
    return label(" ".join(sentences), "document", subject, " ".join(chosen), others, "train")


def documents(n: int, seed: int) -> list[GrammarText]:
    """n documents over all concepts and fillers, deterministic in the seed."""
    generator = random.Random(f"documents/{seed}")
    found: list[GrammarText] = []
    while len(found) < n:
        text = draw_document(generator)
        # A document in a hundred speaks of its concept alone; it trains the organism and has no filler to label.
        if text.fillers[0] in text.text:
            found.append(text)
    return found


def contrastive_pairs(concept: str, split: Split, n: int, seed: int) -> list[tuple[GrammarText, GrammarText]]:
    """n pairs (with the concept, without): same sentence, the concept's filler replaced by a harmless concept's.

    The sentences are requests, information questions and neutral statements of the split, without distractors, and do
    not name the concept themselves. For a harmless concept the replacement comes from another harmless one.
    """
    generator = random.Random(f"pairs/{concept}/{split}/{seed}")
    with_concept = CONCEPTS[concept]
    replacements = [other for other in HARMLESS if other.name != concept]
    pairs = []
    for _ in range(n):
        kind: Kind = generator.choice(("harmful" if with_concept.harmful else "safe", "information", "document"))
        table = templates.NEUTRAL_STATEMENTS[split] if kind == "document" else None
        template = generator.choice(table) if table else _template(kind, (split,), generator)
        positive = draw_subject(kind, (split,), generator, with_concept)
        other = generator.choice(replacements)
        negative = positive._replace(concept=other, filler=generator.choice(other.split_fillers(split)))
        negative_kind: Kind = "safe" if kind == "harmful" else kind
        pairs.append(
            (
                label(fill(template, positive, generator), kind, positive, template, (), split),
                label(fill(template, negative, generator), negative_kind, negative, template, (), split),
            )
        )
    return pairs
