"""Contrastive pairs from texts that have a concept: a language model takes the concept out, and a second call checks.

1. Each text is rewritten; what counting can refuse is asked for again once.
2. The rewriting is checked blindly, together with the original, by a request of its own.
3. Every text ends once: as a pair, as a rejected pair with its reason, or as a failure of the endpoint.
4. As a control, some texts are checked against themselves: a checker that calls those a pair says yes to anything.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from safe_sail.data.concepts import ConceptText
from safe_sail.features.pair_prompts import (
    CHECK_VERSION,
    WRITE_VERSION,
    CheckedReply,
    WrittenReply,
    check_prompt,
    fits_original,
    problem_of,
    write_prompt,
)
from safe_sail.features.prompts import Prompt
from safe_sail.llm.client import ChatClient
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, Message, Spending

_CHECK_TOKENS: Final = 200
"""Of a checker's answer, of 40; thinking models need more and are cut, which is a failure and no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPair:
    """How one text ended."""

    source: ConceptText
    rewrite: str | None
    """The text without the concept; None where none came."""
    reason: str | None
    """Why there is no pair; None where there is one."""
    message: str
    raw: str | None
    """What came instead of a usable answer."""
    spending: Spending


def write_request(one: ConceptText) -> ChatRequest:
    """Asks for the text without its concept; the answer may be twice as long in tokens as a text of that many words."""
    return ChatRequest(
        request_id=f"write-{one.name}",
        messages=_messages(write_prompt(one.text, one.concept)),
        prompt_version=WRITE_VERSION,
        reply_type=WrittenReply,
        check=fits_original(one.text, one.concept),
        max_tokens=64 + 4 * len(one.text.split()) + len(one.text) // 2,
    )


def check_request(one: ConceptText, rewrite: str, *, kind: str = "check") -> ChatRequest:
    """Asks whether both texts are a pair."""
    prompt = check_prompt(one.text, rewrite, one.concept, name=one.name)
    return ChatRequest(
        request_id=f"{kind}-{one.name}",
        messages=_messages(prompt),
        prompt_version=CHECK_VERSION,
        reply_type=CheckedReply,
        max_tokens=_CHECK_TOKENS,
    )


def pair_requests(texts: Iterable[ConceptText]) -> Iterator[ChatRequest]:
    """All requests, with the original in the place of the rewriting that is not known yet; for a forecast."""
    for one in texts:
        yield write_request(one)
        yield check_request(one, one.text)


async def write_pairs(
    texts: Iterable[ConceptText], client: ChatClient, *, at_once: int
) -> AsyncGenerator[WrittenPair, None]:
    """How each text ended, as they end; `at_once` texts are on their way together.

    Wrap it in `contextlib.aclosing` where the loop may be left early: closing cancels what is open.
    """
    source = iter(texts)
    open_tasks: set[asyncio.Task[WrittenPair]] = set()
    try:
        while True:
            open_tasks |= {
                asyncio.create_task(_written(one, client)) for one in islice(source, at_once - len(open_tasks))
            }
            if not open_tasks:
                return
            done, open_tasks = await asyncio.wait(open_tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in open_tasks:
            task.cancel()
        await asyncio.gather(*open_tasks, return_exceptions=True)


async def check_control(texts: Iterable[ConceptText], client: ChatClient) -> tuple[int, int]:
    """(texts checked against themselves, of these called a pair); the second should be 0."""
    requests = {f"control-{one.name}": one for one in texts}
    n_checked = n_called = 0
    async for outcome in client.ask_all(check_request(one, one.text, kind="control") for one in requests.values()):
        if isinstance(outcome, Answered):
            assert isinstance(outcome.reply, CheckedReply)
            n_checked += 1
            n_called += problem_of(outcome.reply, name=requests[outcome.request_id].name) is None
    return n_checked, n_called


async def _written(one: ConceptText, client: ChatClient) -> WrittenPair:
    written = await client.ask(write_request(one))
    if isinstance(written, Failed):
        return _failed(one, None, written, written.spending)
    assert isinstance(written.reply, WrittenReply)
    rewrite = written.reply.rewrite.strip()
    checked = await client.ask(check_request(one, rewrite))
    spending = written.spending.plus(checked.spending)
    if isinstance(checked, Failed):
        return _failed(one, rewrite, checked, spending)
    assert isinstance(checked.reply, CheckedReply)
    reason = problem_of(checked.reply, name=one.name)
    return WrittenPair(
        source=one, rewrite=rewrite, reason=reason, message=_SAYS[reason] if reason else "", raw=None, spending=spending
    )


def _failed(one: ConceptText, rewrite: str | None, failed: Failed, spending: Spending) -> WrittenPair:
    return WrittenPair(
        source=one,
        rewrite=rewrite,
        reason=str(failed.reason),
        message=failed.message,
        raw=failed.raw,
        spending=spending,
    )


_SAYS: Final = {
    "concept_left": "the checker finds the concept in the rewriting.",
    "original_lacks_concept": "the checker does not find the concept in the original.",
    "grammar_differs": "the checker finds another grammatical structure.",
    "length_differs": "the checker finds another length.",
    "question_type_differs": "the checker finds another kind of sentence or question.",
}


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("system", prompt.system), Message("user", prompt.user))
