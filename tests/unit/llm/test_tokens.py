"""The estimate errs to the high side of what real vocabularies make of a text; the bound is never below it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_sail.llm.exchange import Message
from safe_sail.llm.tokens import bound_tokens, estimate_tokens


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        # counted with tiktoken's cl100k_base and published in OpenAI's cookbook, "How to count tokens"
        ("tiktoken is great!", 6),
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("お誕生日おめでとう", 9),
        ("", 0),
    ],
)
def test_estimate_is_not_below_a_real_count(text: str, counted: int):
    assert counted <= estimate_tokens(text) <= 2 * counted


@given(st.text(max_size=200))
def test_bound_is_one_token_a_byte(text: str):
    assert bound_tokens([Message("user", text)]) == len(text.encode()) + 8
