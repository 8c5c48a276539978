"""Token counts without the model's tokenizer: an estimate for forecasts, a bound for budgets.

1. `estimate_tokens` is what forecasts and prompt budgets use; it errs to the high side on plain text.
2. `bound_tokens` is what a budget reserves: no byte-level tokenizer makes more tokens than there are bytes.
"""

import re
from collections.abc import Sequence

from safe_sail.llm.exchange import Message

_PIECES = re.compile(r" ?([A-Za-z]+)|(\s+|[^\sA-Za-z])")
_LETTERS_PER_TOKEN = 4
"""English words of four letters are one token in vocabularies of 32,000 and more; long and rare ones are split."""
_BASIC_PLANE = 0xFFFF
PER_MESSAGE = 8
"""Tokens that a chat template adds to a message; the families we run add 3 to 7."""


def estimate_tokens(text: str) -> int:
    """Number of tokens that a vocabulary of 32,000 or more makes of the text, estimated to the high side.

    Each four letters begun of a word, each digit, punctuation mark and other character count one, characters beyond the
    basic plane (emoji) three, a run of white space one unless it is the single blank before a word.
    """
    count = 0
    for word, other in _PIECES.findall(text):
        if word:
            count += -(-len(word) // _LETTERS_PER_TOKEN)
        else:
            count += 3 if ord(other[0]) > _BASIC_PLANE else 1
    return count


def estimate_prompt(messages: Sequence[Message]) -> int:
    """Estimated prompt tokens of a conversation, template included."""
    return sum(PER_MESSAGE + estimate_tokens(message.content) for message in messages)


def bound_tokens(messages: Sequence[Message], schema_text: str = "") -> int:
    """Prompt tokens that a conversation can cost at most, template and schema included."""
    return len(schema_text.encode()) + sum(PER_MESSAGE + len(message.content.encode()) for message in messages)
