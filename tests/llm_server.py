"""A real OpenAI-compatible server on loopback that can be told to fail: 429, 500, hang, cut, broken JSON, wrong schema.

It parses HTTP by hand on asyncio streams, so that it can cut a connection in the middle and counts what it did itself.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self


class Say(NamedTuple):
    """A good completion."""

    text: str
    prompt_tokens: int = 10
    completion_tokens: int = 5
    finish_reason: str = "stop"
    refusal: str | None = None
    logprobs: bool = False
    with_usage: bool = True
    seconds: float = 0.0


class Status(NamedTuple):
    """An HTTP status with headers and body."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = '{"error": {"message": "no"}}'


class Raw(NamedTuple):
    """200 with this body, whatever it is."""

    body: str


class Hang(NamedTuple):
    """No answer for so long, then a cut connection."""

    seconds: float = 30.0


class Cut(NamedTuple):
    """Half of an answer, then a cut connection."""


class Held(NamedTuple):
    """Another act, once something holds: a test that waits for an event is true at every speed."""

    until: Callable[[], bool]
    then: "Say | Status | Raw | Hang | Cut"


Act = Say | Status | Raw | Hang | Cut | Held


@dataclass
class Call:
    """One request as the server saw it."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    nth: int
    """How often the same first user message came before, from 0."""

    @property
    def asked(self) -> str:
        """The first user message."""
        return next(message["content"] for message in self.body["messages"] if message["role"] == "user")


@dataclass
class LlmServer:
    """A server that answers by its script; a context manager."""

    script: Callable[[Call], Act]
    calls: list[Call] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    url: str = ""

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
        call = Call(body, headers, time.monotonic(), 0)
        call.nth = sum(1 for earlier in self.calls if earlier.asked == call.asked)
        self.calls.append(call)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._act(self.script(call), writer)
        finally:
            self.in_flight -= 1

    async def _act(self, act: Act, writer: asyncio.StreamWriter) -> bool:
        match act:
            case Held(until, then):
                while not until():
                    await asyncio.sleep(0.01)
                return await self._act(then, writer)
            case Hang(seconds):
                await asyncio.sleep(seconds)
                return False
            case Cut():
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"id"')
                await writer.drain()
                return False
            case Status(code, headers, text):
                _write(writer, code, text, headers)
            case Raw(text):
                _write(writer, 200, text)
            case Say():
                await asyncio.sleep(act.seconds)
                if act.with_usage:
                    self.prompt_tokens += act.prompt_tokens
                    self.completion_tokens += act.completion_tokens
                _write(writer, 200, json.dumps(completion(act)))
        await writer.drain()
        return True


def completion(say: Say) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": None if say.refusal else say.text, "refusal": say.refusal}
    logprobs = {"content": [{"token": "a", "logprob": -0.1}]} if say.logprobs else None
    body: dict[str, Any] = {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": say.finish_reason, "logprobs": logprobs}],
    }
    if say.with_usage:
        total = say.prompt_tokens + say.completion_tokens
        body["usage"] = {
            "prompt_tokens": say.prompt_tokens,
            "completion_tokens": say.completion_tokens,
            "total_tokens": total,
        }
    return body


def _write(writer: asyncio.StreamWriter, code: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
    data = text.encode()
    lines = [f"HTTP/1.1 {code} X", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
