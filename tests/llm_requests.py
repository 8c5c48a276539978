"""Builders for tests that ask a real server: requests, settings, and the loop that runs them."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel

from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import ChatRequest, Message, Outcome
from safe_sail.llm.probe import Capabilities
from safe_sail.settings import LlmSettings
from tests.llm_server import Act, Call, LlmServer

KNOWN = Capabilities(schema=False, logprobs=False, usage=True)


class Colour(BaseModel):
    colour: str


def a_request(name: str, **changes: Any) -> ChatRequest:
    fields: dict[str, Any] = {
        "request_id": name,
        "messages": (Message("user", name),),
        "prompt_version": "test/1",
        "max_tokens": 20,
    }
    return ChatRequest(**{**fields, **changes})


def settings_for(server: LlmServer, **changes: Any) -> LlmSettings:
    fields: dict[str, Any] = {
        "base_url": server.url,
        "model": "m",
        "max_in_flight": 8,
        "timeout_s": 120.0,  # only a server that hangs may run into it
        "backoff_s": 0.01,
    }
    return LlmSettings(**{**fields, **changes})


def ask_all(
    settings: LlmSettings, requests: Iterable[ChatRequest], **options: Any
) -> tuple[list[Outcome], OpenAiClient]:
    async def run() -> tuple[list[Outcome], OpenAiClient]:
        async with OpenAiClient(settings, **{"capabilities": KNOWN, **options}) as client:
            return [outcome async for outcome in client.ask_all(requests)], client

    return asyncio.run(run())


def one(script: Callable[[Call], Act], request: ChatRequest | None = None, **changes: Any) -> tuple[Outcome, LlmServer]:
    with LlmServer(script) as server:
        outcomes, _ = ask_all(settings_for(server, **changes), [request or a_request("q")])
    (outcome,) = outcomes
    return outcome, server


def in_turn(*acts: Act) -> Callable[[Call], Act]:
    return lambda call: acts[min(call.nth, len(acts) - 1)]
