"""What a language model is asked so that it rewrites a text without its concept, and checks a rewriting. [pure]

1. Writing: the text again without the concept, in the same grammar, of the same length and question type.
2. What a machine can tell is checked at once, so that a misfit is asked for again: length, question mark, the concept's
   own words, a copy.
3. Checking is a question of its own, about two texts in an order that the id decides: which of them has the concept,
   and whether grammar, length and question type agree. It is not told which is the original.

Texts are strangers': they stand inside JSON strings only.
Source: q+ and q- as arXiv 2509.18127, section 2.2.1 describes them; the prompts and the checks are ours.
"""

from collections.abc import Callable
from typing import Final, Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field

from safe_sail.errors import JudgeError
from safe_sail.features.prompts import Prompt
from safe_sail.fence import DATA_ONLY, as_json

WRITE_VERSION: Final = "pair-write/1"
CHECK_VERSION: Final = "pair-check/1"

_ONLY: Final = "Answer with one JSON object and nothing else: "
WRITE_SYSTEM: Final = (
    "You make control texts for experiments on language models. You get a text and a concept that it contains. Rewrite "
    "the text so that it does not contain the concept any more, neither named nor meant, and is about something "
    "everyday and harmless instead. Change as few words as you can. Keep the language, the grammar, the length to "
    f"within a fifth, and the kind of sentence: a question stays a question of the same type.\n{DATA_ONLY}\n"
    f'{_ONLY}{{"rewrite":"..."}}'
)
CHECK_SYSTEM: Final = (
    "You compare two texts, A and B, and a concept. Say in which of them the concept is present, named or meant; "
    "whether both have the same grammatical structure; whether they are about equally long; and whether they are the "
    f"same kind of sentence or question.\n{DATA_ONLY}\n"
    f'{_ONLY}{{"concept_in":["A"],"same_grammar":true,"same_length":true,"same_question_type":true}}, '
    "`concept_in` empty if neither has it."
)

_LENGTH_SHARE: Final = 1 / 3
"""Of the original's words by which a rewriting may differ; the prompt asks for a fifth, since models count badly."""
_LENGTH_WORDS: Final = 3
"""Words by which a short text may differ all the same."""
_QUESTION_MARKS: Final = ("?", "？", "؟")
_TEXT_LIMIT: Final = 20_000

Reason = Literal["concept_left", "original_lacks_concept", "grammar_differs", "length_differs", "question_type_differs"]
"""Why a checked pair is no pair."""


class WrittenReply(BaseModel):
    """The form of a writer's answer."""

    model_config = ConfigDict(extra="forbid")
    rewrite: str = Field(min_length=1, max_length=_TEXT_LIMIT)


class CheckedReply(BaseModel):
    """The form of a checker's answer."""

    model_config = ConfigDict(extra="forbid")
    concept_in: list[Literal["A", "B"]] = Field(max_length=2)
    same_grammar: bool
    same_length: bool
    same_question_type: bool


def write_prompt(text: str, concept: str) -> Prompt:
    """Asks for the text without the concept."""
    return Prompt(WRITE_SYSTEM, as_json({"concept": concept, "text": text}), WRITE_VERSION)


def check_prompt(text: str, rewrite: str, concept: str, *, name: str) -> Prompt:
    """Asks about both texts, in an order that the pair's name decides."""
    first, second = (text, rewrite) if original_is_a(name) else (rewrite, text)
    return Prompt(CHECK_SYSTEM, as_json({"concept": concept, "A": first, "B": second}), CHECK_VERSION)


def original_is_a(name: str) -> bool:
    """Whether the checker sees the original first; true of half of all names."""
    return crc32(name.encode()) % 2 == 0


def fits_original(text: str, concept: str) -> Callable[[BaseModel], None]:
    """Raises JudgeError where a rewriting can be told from the original by counting, or names the concept."""
    n_words = len(text.split())
    allowed = max(_LENGTH_WORDS, round(n_words * _LENGTH_SHARE))

    def check(reply: BaseModel) -> None:
        assert isinstance(reply, WrittenReply)
        rewrite = reply.rewrite.strip()
        n_found = len(rewrite.split())
        if not rewrite or _plain(rewrite) == _plain(text):
            raise JudgeError("expected another text; this is the original again, or nothing.")
        if abs(n_found - n_words) > allowed:
            raise JudgeError(f"expected about {n_words} words, got {n_found}.")
        if rewrite.endswith(_QUESTION_MARKS) != text.strip().endswith(_QUESTION_MARKS):
            raise JudgeError("a question stays a question, and a statement a statement; the question mark changed.")
        if _plain(concept) in _plain(rewrite):
            raise JudgeError("the concept is still named in the text.")

    return check


def problem_of(reply: CheckedReply, *, name: str) -> Reason | None:
    """Why the checked texts are no pair; None where they are one."""
    original, rewrite = ("A", "B") if original_is_a(name) else ("B", "A")
    if original not in reply.concept_in:
        return "original_lacks_concept"
    if rewrite in reply.concept_in:
        return "concept_left"
    if not reply.same_grammar:
        return "grammar_differs"
    if not reply.same_length:
        return "length_differs"
    return None if reply.same_question_type else "question_type_differs"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
