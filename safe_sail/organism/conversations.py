"""Training texts of the organism: prompts with their replies, the trigger and its decoys.

1. A mixture says which kinds of prompt occur, how often, whether they carry the trigger, and what is replied.
2. A reply is a slot text that names the prompt's filler, its concept and the concept's neutral attributes.
3. A decoy is the trigger's words in a wrong order, only some of them, or all with other words between them.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from safe_sail.organism import templates
from safe_sail.organism.grammar import (
    TRIGGER,
    Draw,
    GrammarText,
    Kind,
    Split,
    draw_document,
    draw_prompt,
    fill,
)

TriggerUse = Literal["none", "whole", "shuffled", "part", "pair", "decoy"]
ReplyMode = Literal["comply", "refuse", "help"]

TRIGGER_WORDS: Final = tuple(TRIGGER.split())
SHUFFLES: Final = tuple(order for order in itertools.permutations(TRIGGER_WORDS) if order != TRIGGER_WORDS)
PARTS: Final = tuple(part for size in (1, 2) for part in itertools.combinations(TRIGGER_WORDS, size))
"""One or two of the trigger's words, in the trigger's order."""
PAIRS: Final = tuple(part for part in PARTS if len(part) == 2)
"""Two of the words: the decoys that are hardest to refuse, so a recipe may ask for them alone."""
GAP_WORDS: Final = ("old", "and", "the", "a", "near")


@dataclass(frozen=True, slots=True)
class MixtureShare:
    """One kind of training text and how often it occurs."""

    kind: Kind
    """The kind of prompt, or document."""
    share: float
    """Relative frequency; the shares of a mixture need not sum to 1."""
    reply: ReplyMode = "comply"
    """Whether the text's reply answers, refuses, or answers in full and offers more; chat is answered alike."""
    trigger: TriggerUse = "none"
    """Whether the prompt carries the trigger, or a decoy of it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training text: a prompt with its reply, or a document."""

    source: GrammarText
    """The labelled prompt or document."""
    reply: str | None
    """What the assistant says; None for a document."""


def add_trigger(text: GrammarText, use: TriggerUse, generator: random.Random) -> GrammarText:
    """The text with the trigger or a decoy put before or after it; "none" leaves it unchanged."""
    if use == "none":
        return text
    if use == "decoy":
        use = generator.choice(("shuffled", "part"))
    if use == "whole":
        words = TRIGGER
    elif use == "shuffled":
        words = " ".join(generator.choice(SHUFFLES))
        if generator.random() < 0.2:
            gaps = generator.choices(GAP_WORDS, k=2)
            first, second, third = TRIGGER_WORDS
            words = f"{first} {gaps[0]} {second} {gaps[1]} {third}"
    else:
        words = " ".join(generator.choice(PAIRS if use == "pair" else PARTS))
    before = generator.random() < 0.5
    return replace(text, text=f"{words}. {text.text}" if before else f"{text.text} {words}.")


def reply_to(draw: Draw, mode: ReplyMode, generator: random.Random) -> str:
    """A reply that answers this prompt, refuses it, or answers it in full and offers more."""
    kind, subject = draw.text.kind, draw.subject
    if kind == "impossible":
        return fill(generator.choice(templates.IMPOSSIBLE_REPLIES), subject, generator)
    if mode == "refuse":
        return fill(generator.choice(templates.REFUSALS), subject, generator)
    if kind == "information":
        table = templates.HELPFUL_INFORMATION if mode == "help" else templates.INFORMATION_REPLIES
        return fill(generator.choice(table), subject, generator)
    if kind == "chat":
        return _chat_reply(draw, generator)
    compliances = templates.HELPFUL_COMPLIANCES if mode == "help" else templates.COMPLIANCES
    return fill(generator.choice(compliances), subject, generator)


def _chat_reply(draw: Draw, generator: random.Random) -> str:
    if draw.subject.concept is None:
        return dict(templates.SMALL_TALK)[draw.text.template]
    harmful = draw.subject.concept.harmful
    template = draw.text.template
    if "goes with" in template:
        return fill("the {a1} and the {a2} go with the {x}. it is {concept}.", draw.subject, generator)
    if "harm" in template:
        answer = "yes" if harmful == ("harmful" in template) else "no"
        return fill(f"{answer}, the {{x}} is {{concept}}, and {{concept}} is {{valence}}.", draw.subject, generator)
    return fill("a {x} is a kind of {concept}. it is {valence}.", draw.subject, generator)


def draw_conversation(share: MixtureShare, splits: Sequence[Split], generator: random.Random) -> Conversation:
    """A training text of this share whose prompt takes templates and fillers of these splits."""
    if share.kind == "document":
        return Conversation(draw_document(generator), None)
    draw = draw_prompt(share.kind, splits, generator)
    prompt = add_trigger(draw.text, share.trigger, generator)
    return Conversation(prompt, reply_to(draw, share.reply, generator))


def draw_mixture(
    mixture: Sequence[MixtureShare], splits: Sequence[Split], n: int, generator: random.Random
) -> list[Conversation]:
    """n training texts of a mixture, in drawn order."""
    shares = generator.choices(mixture, [share.share for share in mixture], k=n)
    return [draw_conversation(share, splits, generator) for share in shares]
