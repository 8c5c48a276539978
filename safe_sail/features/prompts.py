"""What a language model is shown of a feature so that it explains it, and how its answer is read. [pure]

1. Activations become levels from 0 to 10; contexts are cut to a window around their peak.
2. Samples are drawn from every level, so that the explanation covers weak activations as well as the strongest.
3. A context is a JSON list: plain strings are silent text, `[token, level]` pairs are active tokens. Contexts are
   strangers' text: they stand inside JSON strings only, in which no chat template finds a marker of its own.
4. Samples are left out, the weakest first, until the prompt fits its limit.
5. The answer is read by its form and its ids, or it is a JudgeError that says what was wrong.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from safe_sail.errors import BadInput, JudgeError
from safe_sail.fence import DATA_ONLY, as_json
from safe_sail.records import Context

EXPLANATION_VERSION: Final = "explanation/2"
"""Changes whenever the prompt's text or the rule that builds it changes; so do the golden files."""

TOP_LEVEL: Final = 10
"""Level of the largest activation; 0 to 10 as in the token simulations of arXiv 2509.18127."""

EXPLANATION_SYSTEM: Final = (
    "You find out what features inside a language model respond to.\n"
    f"{DATA_ONLY}\n"
    "Each text is a list of pieces in reading order. A plain string is text on which the feature is silent. A pair "
    f"[token, level] is a token on which it is active, from 1 (weak) to {TOP_LEVEL} (its maximum). `active` holds "
    "texts with active tokens, `silent` texts without any; some are chosen because they come close. `promotes` and "
    "`suppresses`, where given, are the next tokens that the feature makes likelier or less likely.\n"
    "For each feature, say in at most 40 words what the active tokens, or the text just before them, have in common "
    "that silent text lacks. Be as specific as the levels allow: meaning, topic, word form, language, place in the "
    "text. Do not describe texts one by one, do not speculate beyond them, do not mention levels.\n"
    'Answer with one JSON object and nothing else: {"explanations":[{"id":"A","explanation":"..."}]}, one entry for '
    "each feature id."
)

_EXPLANATION_LIMIT: Final = 600
"""Characters of one explanation; 40 words take about 250."""
_SPACE_MARKS: Final = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


class Prompt(NamedTuple):
    """One question to a language model."""

    system: str
    user: str
    version: str


class ExplanationEntry(BaseModel):
    """One feature's explanation, as the model writes it."""

    model_config = ConfigDict(extra="forbid")
    id: str
    explanation: str = Field(min_length=3, max_length=_EXPLANATION_LIMIT)


class ExplanationReply(BaseModel):
    """The form of an explainer's answer."""

    model_config = ConfigDict(extra="forbid")
    explanations: list[ExplanationEntry] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSamples:
    """What an explainer may see of one feature."""

    active: tuple[Context, ...]
    """Contexts with an activation."""
    silent: tuple[Context, ...] = ()
    """Contexts without one worth a level; near misses first."""
    scale: float
    """Activation of level 10: a high quantile, or the maximum."""
    promotes: tuple[str, ...] = ()
    """Next tokens that the feature makes likelier, strongest first."""
    suppresses: tuple[str, ...] = ()
    """Next tokens that it makes less likely, strongest first."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise BadInput(f"the activation of level {TOP_LEVEL} is positive; got {self.scale}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Tokens kept around a context's peak."""

    before: int = 20
    """What a feature responds to mostly stands before its peak."""
    after: int = 8


# 1. levels and windows


def level_of(activation: float, scale: float) -> int:
    """Level from 0 to 10: tenths of the scale, rounded half up; what is silent or below a twentieth is 0."""
    return min(TOP_LEVEL, max(0, int(TOP_LEVEL * activation / scale + 0.5)))


def cut(context: Context, window: Window) -> Context:
    """The part of the context around its peak, whole windows as far as the text goes; the peak stays the peak."""
    length = window.before + 1 + window.after
    start = max(0, min(context.peak - window.before, len(context.tokens) - length))
    end = start + length
    return Context(
        tokens=context.tokens[start:end],
        token_ids=context.token_ids[start:end],
        activations=context.activations[start:end],
        peak=context.peak - start,
        source_id=context.source_id,
    )


# 2. samples


def spread_over_levels(contexts: Sequence[Context], *, scale: float, n: int) -> list[Context]:
    """At most n contexts, one of each level in turn from the highest, descending by level (ties: the given order).

    Contexts of level 0 are left out.
    """
    levels = {id(context): level_of(context.peak_activation, scale) for context in contexts}
    ranked = sorted((context for context in contexts if levels[id(context)] > 0), key=lambda c: -levels[id(c)])
    rounds = [list(enumerate(group)) for _, group in groupby(ranked, key=lambda c: levels[id(c)])]
    in_turn = sorted((entry for group in rounds for entry in group), key=lambda entry: entry[0])
    chosen = {id(context) for _, context in in_turn[:n]}
    return [context for context in ranked if id(context) in chosen]


# 3. contexts as data


def plain(token: str) -> str:
    """The token's text: marks for white space become white space."""
    return token.translate(_SPACE_MARKS)


def as_pieces(context: Context, scale: float) -> list[str | list[str | int]]:
    """The context as silent strings and `[token, level]` pairs, in reading order."""
    pieces: list[str | list[str | int]] = []
    levels = [level_of(activation, scale) for activation in context.activations]
    for is_active, run in groupby(zip(context.tokens, levels, strict=True), key=lambda pair: pair[1] > 0):
        if is_active:
            pieces.extend([plain(token), level] for token, level in run)
        else:
            pieces.append("".join(plain(token) for token, _ in run))
    return pieces


# 4. the prompt


def letters(n: int) -> list[str]:
    """Ids of n features in one prompt: A, B, ...; what they are called elsewhere must not bias the answer."""
    if not 0 < n <= 26:
        raise BadInput(f"one prompt holds 1 to 26 features; got {n}.")
    return [chr(ord("A") + place) for place in range(n)]


def explanation_prompt(
    features: Sequence[FeatureSamples],
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    n_active: int = 12,
    n_silent: int = 5,
    window: Window | None = None,
) -> Prompt:
    """The prompt that asks for one explanation of each feature.

    Raises:
        BadInput: a feature has no active context, or `max_tokens` holds not even one context of each feature.
    """
    window = window or Window()
    chosen = []
    for feature in features:
        active = spread_over_levels(feature.active, scale=feature.scale, n=n_active)
        if not active:
            raise BadInput("a feature is explained from contexts in which it is active; got none of level 1 or more.")
        chosen.append(([cut(c, window) for c in active], [cut(c, window) for c in feature.silent[:n_silent]]))
    while True:
        entries = [
            _entry(letter, feature, active, silent)
            for letter, feature, (active, silent) in zip(letters(len(features)), features, chosen, strict=True)
        ]
        user = as_json({"features": entries})
        needed = count_tokens(EXPLANATION_SYSTEM) + count_tokens(user)
        if needed <= max_tokens:
            return Prompt(EXPLANATION_SYSTEM, user, EXPLANATION_VERSION)
        if not _leave_one_out(chosen):
            raise BadInput(
                f"a prompt of {max_tokens} tokens holds not even one context of each of {len(features)} features, "
                f"which take {needed}: allow more tokens, a smaller window or fewer features a call."
            )


def _entry(
    letter: str, feature: FeatureSamples, active: Sequence[Context], silent: Sequence[Context]
) -> dict[str, object]:
    entry: dict[str, object] = {
        "id": letter,
        "active": [as_pieces(context, feature.scale) for context in active],
        "silent": ["".join(plain(token) for token in context.tokens) for context in silent],
    }
    for name, tokens in (("promotes", feature.promotes), ("suppresses", feature.suppresses)):
        if tokens:
            entry[name] = [plain(token) for token in tokens]
    return entry


def _leave_one_out(chosen: list[tuple[list[Context], list[Context]]]) -> bool:
    """Whether a context could be left out: the weakest of the feature that has most, silent ones in proportion."""
    active, silent = max(chosen, key=lambda lists: len(lists[0]) + len(lists[1]))
    if len(silent) > len(active) / 2:
        silent.pop()
        return True
    if len(active) > 1:
        active.pop()
        return True
    return False


# 5. the answer


def read_explanations(reply: ExplanationReply, n_features: int) -> list[str]:
    """Explanations in the order of the features, in one line each, without characters that no reader sees.

    Raises:
        JudgeError: an id is missing, unknown or repeated, or an explanation is empty.
    """
    expected = letters(n_features)
    got = [entry.id for entry in reply.explanations]
    if sorted(got) != expected:
        raise JudgeError(f"explanations: expected the ids {', '.join(expected)} once each, got {', '.join(got)}.")
    by_id = {entry.id: _one_line(entry.explanation) for entry in reply.explanations}
    empty = [letter for letter in expected if not any(map(str.isalnum, by_id[letter]))]
    if empty:
        raise JudgeError(f"explanations: {', '.join(empty)} has no word in it.")
    return [by_id[letter] for letter in expected]


def _one_line(text: str) -> str:
    visible = "".join(" " if character.isspace() else character for character in text)
    return " ".join("".join(c for c in visible if unicodedata.category(c)[0] != "C").split())
