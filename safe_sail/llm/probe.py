"""What an endpoint can do, by trying it: a 200 does not say that a schema or a wish for logprobs was honoured."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from safe_sail.errors import BudgetExhausted, EndpointRefused, EndpointUnreachable
from safe_sail.llm.endpoint import Fault, Reply
from safe_sail.llm.exchange import FailureReason
from safe_sail.llm.structured import response_format

PROBE_TOKENS = 128
"""Tokens of a probe's answer at most; the schema's only answers take ten."""
_MESSAGES = [{"role": "user", "content": "Say hello."}]


class Capabilities(NamedTuple):
    """What an endpoint was seen to do."""

    schema: bool
    """An answer kept to the schema, although the prompt asked for something else."""
    logprobs: bool
    """An answer carried log probabilities."""
    usage: bool
    """Answers report their tokens; without it every attempt counts its upper bound."""


class _Password(BaseModel):
    model_config = ConfigDict(extra="forbid")
    password: Literal["teal-417", "teal-902"]


async def probe(send: Callable[[Mapping[str, Any]], Awaitable[Reply | Fault]]) -> Capabilities:
    """Capabilities of the endpoint behind `send`, which takes the part of a body beyond model and limits.

    Raises:
        EndpointUnreachable: nothing answers, or no OpenAI-compatible server.
        EndpointRefused: the key or the model is refused.
        BudgetExhausted: the budget does not even cover a probe.
    """
    shaped = await send({"messages": _MESSAGES, "response_format": response_format(_Password)})
    likely = await send({"messages": _MESSAGES, "logprobs": True, "top_logprobs": 2})
    answered = [result for result in (shaped, likely) if isinstance(result, Reply)]
    for result in (shaped, likely):
        if isinstance(result, Fault) and not _says_unknown_field(result):
            raise _as_error(result)
    if not answered:
        plain = await send({"messages": _MESSAGES})
        if isinstance(plain, Fault):
            raise _as_error(plain)
        answered.append(plain)
    return Capabilities(
        schema=isinstance(shaped, Reply) and _is_password(shaped.text),
        logprobs=isinstance(likely, Reply) and likely.has_logprobs,
        usage=all(reply.usage is not None for reply in answered),
    )


def _says_unknown_field(fault: Fault) -> bool:
    return fault.status in {400, 422}


def _is_password(text: str) -> bool:
    try:
        _Password.model_validate_json(text)
    except ValidationError:
        return False
    return True


def _as_error(fault: Fault) -> Exception:
    if fault.reason is FailureReason.BUDGET_EXHAUSTED:
        return BudgetExhausted(fault.message)
    if fault.reason in {FailureReason.REQUEST_REFUSED, FailureReason.QUOTA_EXHAUSTED}:
        return EndpointRefused(fault.message)
    return EndpointUnreachable(fault.message)
