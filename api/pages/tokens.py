"""Tokens of a context as the page draws them: hostile text harmless, white space visible, activation as a colour step.

1. A token is cut into parts: plain text, which the template escapes, and marks for what a reader could not see.
2. Its activation becomes a step of 1 to 10 relative to the feature's largest activation; zero is no step.
3. Runs of silent tokens are joined, so that a context has few elements and reads as text.
"""

import math
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from api.pages.numbers import number
from safe_sail.records import Context

STEPS = 10
_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\N{NO-BREAK SPACE}": "⍽"}


class Part(NamedTuple):
    """One piece of a token."""

    kind: str
    """`text`, `space`, `newline` or `mark` (anything else invisible)."""
    text: str
    """What is drawn; for a space or newline also what is copied."""


class TokenView(NamedTuple):
    """One firing token, or a run of silent ones."""

    parts: list[Part]
    css: str
    """`a1` to `a10` for a positive activation, `n1` to `n10` for a negative one, empty for silent tokens."""
    value: str
    """The activation as text; empty for silent tokens."""
    label: str
    """What a screen reader says; empty for silent tokens."""
    is_peak: bool


def token_views(context: Context, scale: float) -> Iterator[TokenView]:
    """Views of a context's tokens in order; `scale` is the activation that the strongest colour stands for."""
    positions = range(len(context.tokens))
    for key, group in groupby(positions, key=lambda i: i if context.activations[i] else -1):
        if key == -1:
            text = "".join(context.tokens[i] for i in group)
            yield TokenView(parts=list(text_parts(text)), css="", value="", label="", is_peak=False)
            continue
        activation, token = context.activations[key], context.tokens[key]
        value = number(activation)
        yield TokenView(
            parts=list(text_parts(token)),
            css=f"{'a' if activation > 0 else 'n'}{step(activation, scale)}",
            value=value,
            label=f"{_spoken(token)}, activation {value}",
            is_peak=key == context.peak,
        )


def step(activation: float, scale: float) -> int:
    """Colour step 1 to 10 of an activation that is not zero."""
    if scale <= 0:
        return STEPS
    return min(max(math.ceil(STEPS * abs(activation) / scale), 1), STEPS)


def text_parts(token: str) -> Iterator[Part]:
    """The pieces of a token or a run of tokens."""
    for kind, group in groupby(token, key=_kind):
        text = "".join(group)
        if kind == "text":
            yield Part("text", text)
        else:
            yield from (Part(kind, _drawn(character)) for character in text)


def _kind(character: str) -> str:
    if character == " ":
        return "space"
    if character == "\n":
        return "newline"
    # Cc: control, Cf: format (bidirectional overrides, zero width), Zl/Zp/Zs: other separators, Cs/Co/Cn: no glyph
    return "mark" if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp", "Zs", "Cs", "Co", "Cn"} else "text"


def _drawn(character: str) -> str:
    if character == " ":
        return character
    if character in _MARKS:
        return _MARKS[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))  # control pictures
    return f"⟨U+{ord(character):04X}⟩"


def _spoken(token: str) -> str:
    text = "".join("newline" if part.kind == "newline" else part.text for part in text_parts(token)).strip()
    return text or "space"
