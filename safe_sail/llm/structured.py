"""Answers of a given form: the schema that is sent, and the reading of what comes back.

1. The schema goes with the request where the endpoint honours schemas; an endpoint that says 200 proves nothing.
2. The answer is validated whole; failing that, its first JSON object after any thinking is.
3. What is still wrong is said in one short sentence, which the re-ask and the failure carry.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from safe_sail.errors import JudgeError
from safe_sail.llm.exchange import ChatRequest, Message
from safe_sail.settings import LlmSettings

_UNSENT = frozenset({"title", "default", "minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"})
"""Left out of the schema on the wire: strict modes refuse some of them. pydantic checks them all afterwards."""
_SHOWN_AGAIN = 4000
"""Characters of a misfit answer that the re-ask carries; more costs tokens and teaches nothing."""
_END_OF_THINKING = "</think>"
_BRACES_TRIED = 100
"""Opening braces at which an object is looked for: thousands of them, nested, would take seconds to try."""


def response_format(reply_type: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` field that asks for this type."""
    schema = _without_unsent(reply_type.model_json_schema())
    return {"type": "json_schema", "json_schema": {"name": reply_type.__name__, "schema": schema, "strict": True}}


def request_body(
    request: ChatRequest, messages: Sequence[Message], settings: LlmSettings, *, with_schema: bool
) -> dict[str, Any]:
    """The JSON body of one attempt, the same for a call and for a line of a batch file."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [message._asdict() for message in messages],
        settings.completion_field: request.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if request.seed is not None:
        body["seed"] = request.seed
    if with_schema and request.reply_type is not None:
        body["response_format"] = response_format(request.reply_type)
    return body


def read_answer(text: str, request: ChatRequest, *, truncated: bool) -> BaseModel | None:
    """The answer in the request's reply type; None where it has none.

    Raises:
        JudgeError: the answer is empty or cut off, no JSON object in it fits, or `check` refused the content.
    """
    if request.reply_type is None:
        if truncated or not text.strip():
            raise JudgeError(f"expected an answer, got {'a truncated' if truncated else 'an empty'} one.")
        return None
    reply = _validated(text, request.reply_type)
    if request.check is not None:
        request.check(reply)
    return reply


def asked_again(text: str, problem: str) -> list[Message]:
    """The turns after an answer that did not fit, which ask for it once more."""
    shown = [Message("assistant", text[:_SHOWN_AGAIN])] if text else []
    return [*shown, Message("user", f"That did not fit: {problem} Answer again with one JSON object and nothing else.")]


def first_json_object(text: str) -> str | None:
    """The first JSON object in the text, after the model's thinking if it shows any; None without one."""
    _, found, answer = text.rpartition(_END_OF_THINKING)
    return next(_objects(answer if found else text), None)


def _objects(text: str) -> Iterator[str]:
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(_BRACES_TRIED):
        if start < 0:
            return
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            start = text.find("{", start + 1)
            continue
        if isinstance(value, dict):
            yield text[start:end]
        start = text.find("{", end)


def _validated(text: str, reply_type: type[BaseModel]) -> BaseModel:
    try:
        return reply_type.model_validate_json(text)
    except ValidationError as whole:
        inner = first_json_object(text)
        if inner is None:
            raise JudgeError(f"expected one JSON object, got {len(text)} characters without one.") from whole
    try:
        return reply_type.model_validate_json(inner)
    except ValidationError as error:
        raise JudgeError(_in_short(error)) from error


def _in_short(error: ValidationError) -> str:
    problems = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'the object'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)[:3]
    ]
    rest = error.error_count() - len(problems)
    return "; ".join(problems) + (f"; and {rest} more" if rest else "") + "."


def _without_unsent(schema: Any, *, names: bool = False) -> Any:
    """The schema without keywords that strict modes refuse; the keys of `properties` are names, not keywords."""
    if isinstance(schema, Mapping):
        return {
            key: _without_unsent(value, names=key in {"properties", "$defs"} and not names)
            for key, value in schema.items()
            if names or key not in _UNSENT
        }
    if isinstance(schema, list):
        return [_without_unsent(value) for value in schema]
    return schema
