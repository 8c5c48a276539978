"""What a judge is shown so that it predicts a feature from its explanation alone, and how its answer is read. [pure]

1. Segments: each text is cut into short segments, each with a one-character number before it; the judge lists the
   active ones of each text (0 or 1 per segment).
2. Tokens: each text is numbered token by token; the judge gives active tokens a level from 1 to 10, others are 0.
3. Detection: the judge lists the texts that fit the explanation.
4. Fuzzing: tokens are marked, rightly or wrongly; the judge lists the texts whose every marked token fits.

Several features share a call of the first two: texts are numbered through, and the answer speaks of text numbers.
The explanation is model output and the texts are strangers': both stand inside JSON strings only.
Source: segments and levels after arXiv 2509.18127, figure 3; detection and fuzzing after arXiv 2410.13928.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from safe_sail.errors import BadInput, JudgeError
from safe_sail.features.lexical import SEGMENT_WORDS, words_of
from safe_sail.features.prompts import TOP_LEVEL, Prompt, level_of, plain
from safe_sail.fence import DATA_ONLY, as_json
from safe_sail.records import Context

T = TypeVar("T")

SEGMENTS_VERSION: Final = "segments/2"
TOKENS_VERSION: Final = "tokens/1"
DETECTION_VERSION: Final = "detection/1"
FUZZING_VERSION: Final = "fuzzing/1"

_MARK: Final = re.compile("[①-⑳㉑-㉟㊱-㊿]")
"""The marks of segments, 1 to 50."""

_JUDGE: Final = (
    "A feature inside a language model is described by what it responds to. From the description alone, predict where "
    f"it is active.\n{DATA_ONLY}\n"
)
_ONLY: Final = "Answer with one JSON object and nothing else: "

SEGMENTS_SYSTEM: Final = (
    f"{_JUDGE}Each text is cut into segments; before each stands its number: ①, ②, and so on. A segment is active if "
    "the feature is active anywhere in it. Most segments are not, and many texts have none that is.\n"
    f'{_ONLY}{{"active":[[2,5],[],[1]]}}, one list of active segments for each text, in their order.'
)
TOKENS_SYSTEM: Final = (
    f"{_JUDGE}Each text is cut into numbered tokens. Give each token on which the feature is active a level from 1 "
    f"(weak) to {TOP_LEVEL} (its maximum). Most tokens are not active, and many texts have no active token.\n"
    f'{_ONLY}{{"texts":[{{"id":1,"active":[{{"token":2,"level":8}}]}},{{"id":2,"active":[]}}]}}, one entry for each '
    "text; tokens that are not listed count as level 0."
)
DETECTION_SYSTEM: Final = (
    f"{_JUDGE}About half of the texts, or fewer, make the feature active on at least one token.\n"
    f'{_ONLY}{{"fitting":[1,4]}}, the ids of the texts on which it is active; an empty list if there are none.'
)
FUZZING_SYSTEM: Final = (
    f"{_JUDGE}Each text is a list of pieces in reading order; tokens that stand in a list of their own are marked. In "
    "some texts the marks stand where the feature is active, in others they stand elsewhere.\n"
    f'{_ONLY}{{"fitting":[1,4]}}, the ids of the texts in which every mark fits the description; an empty list if '
    "there are none."
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SegmentReply(_Strict):
    """The form of a judge's answer about segments: of each text, in order, the numbers of those that are active."""

    active: list[list[int]] = Field(min_length=1)


class TokenLevel(_Strict):
    """One active token, as the judge writes it."""

    token: int
    level: int = Field(ge=0, le=TOP_LEVEL)


class TokenText(_Strict):
    """Active tokens of one text, as the judge writes them."""

    id: int
    active: list[TokenLevel]


class TokenReply(_Strict):
    """The form of a judge's answer about tokens."""

    texts: list[TokenText] = Field(min_length=1)


class FittingReply(_Strict):
    """The form of a judge's answer about whole texts."""

    fitting: list[int]


class Segment(NamedTuple):
    """A few words of a context."""

    text: str
    active: bool
    """Whether the feature is active on one of its words."""


class JudgedFeature(NamedTuple):
    """An explanation and the contexts on which it is judged; its explainer saw none of them."""

    explanation: str
    contexts: tuple[Context, ...]


class Marked(NamedTuple):
    """A context with marks for fuzzing."""

    context: Context
    marked: frozenset[int]
    """Token positions, counted from 0."""


# 1. segments


def segments_of(context: Context) -> list[Segment]:
    """The context in segments of `SEGMENT_WORDS` words, as `lexical.true_segments` cuts it.

    Segments begin where tokens do, so that their texts join to the whole; words that share one token with the next
    segment alone stand for themselves.
    """
    words = words_of(context.tokens, context.activations)
    groups = [words[start : start + SEGMENT_WORDS] for start in range(0, len(words), SEGMENT_WORDS)]
    # a segment runs to where the next one starts; the first also holds what stands before the first word
    starts = [0] + [group[0].tokens[0] for group in groups[1:]] + [len(context.tokens)]
    segments = []
    for group, start, end in zip(groups, starts, starts[1:], strict=False):
        text = "".join(plain(token) for token in context.tokens[start:end]) or "".join(word.text for word in group)
        segments.append(Segment(text, any(word.activation > 0 for word in group)))
    return segments


def segments_prompt(features: Sequence[JudgedFeature]) -> Prompt:
    """The prompt that asks for the active segments of every context of these features."""
    _require_contexts(features)
    entries = [
        {"description": explanation, "texts": [_numbered(context) for context in contexts]}
        for explanation, contexts in features
    ]
    return Prompt(SEGMENTS_SYSTEM, as_json({"features": entries}), SEGMENTS_VERSION)


def segment_mark(number: int) -> str:
    """What stands before a segment: one character up to 50, counted from 1."""
    if number <= 20:
        return chr(0x2460 + number - 1)
    if number <= 35:
        return chr(0x3251 + number - 21)
    return chr(0x32B1 + number - 36) if number <= 50 else f"({number})"


def _numbered(context: Context) -> str:
    # a stranger's own mark would look like ours: it becomes what it shows, a number in brackets
    pieces = (_MARK.sub(_in_brackets, segment.text) for segment in segments_of(context))
    return "".join(f"{segment_mark(number)}{piece}" for number, piece in enumerate(pieces, start=1))


def _in_brackets(mark: re.Match[str]) -> str:
    return f"({unicodedata.normalize('NFKC', mark[0])})"


def read_segments(reply: SegmentReply, features: Sequence[JudgedFeature]) -> list[list[list[bool]]]:
    """Predicted activity by feature, context and segment.

    Raises:
        JudgeError: a text has no list, or a segment is unknown or repeated.
    """
    contexts = [context for feature in features for context in feature.contexts]
    if len(reply.active) != len(contexts):
        raise JudgeError(f"active: expected {len(contexts)} lists, one for each text, got {len(reply.active)}.")
    flat = []
    for number, (context, listed) in enumerate(zip(contexts, reply.active, strict=True), start=1):
        n = len(segments_of(context))
        active = _numbers(listed, n, f"text {number}, segments")
        flat.append([place in active for place in range(1, n + 1)])
    return _regrouped(flat, features)


# 2. tokens


def tokens_prompt(features: Sequence[JudgedFeature]) -> Prompt:
    """The prompt that asks for the level of every token of every context of these features."""
    _require_contexts(features)
    texts = [
        [{str(n): plain(token) for n, token in enumerate(context.tokens, start=1)} for context in contexts]
        for _, contexts in features
    ]
    return Prompt(TOKENS_SYSTEM, _tokens_by_feature(features, texts), TOKENS_VERSION)


def read_tokens(reply: TokenReply, features: Sequence[JudgedFeature]) -> list[list[list[int]]]:
    """Predicted level by feature, context and token.

    Raises:
        JudgeError: a text or token is missing, unknown or repeated.
    """
    contexts = [context for feature in features for context in feature.contexts]
    by_text = _by_id([(text.id, text.active) for text in reply.texts], len(contexts))
    flat = []
    for number, context in enumerate(contexts, start=1):
        n = len(context.tokens)
        levels = {entry.token: entry.level for entry in by_text[number]}
        _numbers([entry.token for entry in by_text[number]], n, f"text {number}, tokens")
        flat.append([levels.get(place, 0) for place in range(1, n + 1)])
    return _regrouped(flat, features)


def true_levels(context: Context, scale: float) -> list[int]:
    """Level of each token, which a token simulation predicts."""
    return [level_of(activation, scale) for activation in context.activations]


# 3. and 4. whole texts


def detection_prompt(explanation: str, contexts: Sequence[Context]) -> Prompt:
    """The prompt that asks which contexts make the feature active; their order must not tell."""
    texts = [
        {"id": number, "text": "".join(plain(token) for token in context.tokens)}
        for number, context in enumerate(contexts, start=1)
    ]
    return Prompt(DETECTION_SYSTEM, as_json({"description": explanation, "texts": texts}), DETECTION_VERSION)


def fuzzing_prompt(explanation: str, marked: Sequence[Marked]) -> Prompt:
    """The prompt that asks in which contexts the marks fit; number and place of wrong marks must not tell."""
    texts = [{"id": number, "pieces": _with_marks(entry)} for number, entry in enumerate(marked, start=1)]
    return Prompt(FUZZING_SYSTEM, as_json({"description": explanation, "texts": texts}), FUZZING_VERSION)


def read_fitting(reply: FittingReply, n_texts: int) -> list[bool]:
    """Whether each text was said to fit.

    Raises:
        JudgeError: an id is unknown or repeated.
    """
    fitting = _numbers(reply.fitting, n_texts, "texts")
    return [number in fitting for number in range(1, n_texts + 1)]


def _with_marks(entry: Marked) -> list[str | list[str]]:
    n = len(entry.context.tokens)
    outside = sorted(place for place in entry.marked if not 0 <= place < n)
    if outside or not entry.marked:
        raise BadInput(f"marks are positions among {n} tokens, at least one; got {sorted(entry.marked)}.")
    pieces: list[str | list[str]] = []
    for place, token in enumerate(entry.context.tokens):
        if place in entry.marked:
            pieces.append([plain(token)])
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += plain(token)
        else:
            pieces.append(plain(token))
    return pieces


# building and reading


def _require_contexts(features: Sequence[JudgedFeature]) -> None:
    if not features or not all(feature.contexts for feature in features):
        raise BadInput("a judge needs at least one feature, and a context of each.")


def _tokens_by_feature(features: Sequence[JudgedFeature], texts: Sequence[Sequence[dict[str, str]]]) -> str:
    number = 0
    entries = []
    for feature, of_feature in zip(features, texts, strict=True):
        numbered: list[dict[str, object]] = []
        for text in of_feature:
            number += 1
            numbered.append({"id": number, "tokens": text})
        entries.append({"description": feature.explanation, "texts": numbered})
    return as_json({"features": entries})


def _by_id(entries: Sequence[tuple[int, T]], n_texts: int) -> dict[int, T]:
    got = sorted(number for number, _ in entries)
    if got != list(range(1, n_texts + 1)):
        raise JudgeError(f"texts: expected the ids 1 to {n_texts} once each, got {got}.")
    return dict(entries)


def _numbers(got: Sequence[int], n: int, what: str) -> set[int]:
    if len(set(got)) != len(got) or not set(got) <= set(range(1, n + 1)):
        raise JudgeError(f"{what}: expected numbers from 1 to {n}, each at most once, got {sorted(got)}.")
    return set(got)


def _regrouped(flat: Sequence[T], features: Sequence[JudgedFeature]) -> list[list[T]]:
    rest = iter(flat)
    return [[next(rest) for _ in feature.contexts] for feature in features]
