"""Answers are read whole, then by their first object after any thinking; what is wrong is said in short."""

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from safe_sail.errors import JudgeError
from safe_sail.llm.exchange import ChatRequest, Message
from safe_sail.llm.structured import first_json_object, read_answer, response_format


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=5)
    level: int = Field(ge=0, le=10)


class Items(BaseModel):
    model_config = ConfigDict(extra="forbid")
    items: list[Item] = Field(min_length=1)
    kind: Literal["a", "b"]


REQUEST = ChatRequest(request_id="r", messages=(Message("user", "q"),), prompt_version="1", reply_type=Item)
GOOD = '{"title": "x", "level": 3}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Here: {GOOD} and {{more}}",
        f'<think>maybe {{"title": "draft", "level": 0}}</think>{GOOD}',
        "a { broken [ " + GOOD,
    ],
)
def test_answer_is_found(text: str):
    assert read_answer(text, REQUEST, truncated=False) == Item(title="x", level=3)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "got 0 characters without one"),
        ("[1, 2]", "without one"),
        ('{"title": "x"}', "level: Field required"),
        ('{"title": "x", "level": 11}', "level: Input should be less than or equal to 10"),
        ('{"title": "too long", "level": 1}', "title: String should have at most 5 characters"),
        ('{"title": "x", "level": 1, "extra": 1}', "extra: Extra inputs"),
        ('{"a":1,"b":1,"c":1,"d":1}', "and 3 more"),
        ("{" * 5000, "without one"),
        ('{"a":' * 5000, "without one"),
    ],
)
def test_misfit_is_said_in_short(text: str, problem: str):
    with pytest.raises(JudgeError, match=problem.replace("(", r"\(")) as caught:
        read_answer(text, REQUEST, truncated=False)
    assert len(str(caught.value)) < 400


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_object_is_found_in_any_text_around_it(value: object):
    text = json.dumps({"value": value})
    assert first_json_object(f"Well, {text} that is it") == text
    assert first_json_object(text) == text


def test_schema_on_the_wire_keeps_names_and_drops_limits():
    wire = response_format(Items)["json_schema"]
    schema = wire["schema"]
    assert (wire["name"], wire["strict"]) == ("Items", True)
    assert set(schema["$defs"]["Item"]["properties"]) == {"title", "level"}, "a field named like a keyword stays"
    assert schema["$defs"]["Item"]["properties"]["level"] == {"type": "integer"}
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["items", "kind"]
    assert schema["properties"]["kind"]["enum"] == ["a", "b"]
    assert "minItems" not in schema["properties"]["items"]
