"""Is an endpoint with 1.5 s latency that allows 64 requests at once kept at least 90 % busy?

Machine: 2 cores shared with other jobs, Python 3.11.7, openai 3.52.0. 1,280 requests of 1,000 words; ideal 30.0 s;
server in its own process; median [least, most]. Busy: what the server worked on, over 64 times the time from the first
request to the last answer, ramps included. First row: three runs, load average 3, 2026-11-27; the others: five runs,
load average 8, 2026-11-21.

| way | busy | seconds | answers 429 | CPU s of the client |
|---|---|---|---|---|
| client, max_in_flight 64 | 0.96 [0.95, 0.97] | 31.3 [31.1, 31.6] | 0 | 5.8 |
| the same | 0.91 [0.88, 0.97] | 33.1 [31.0, 34.0] | 0 | 2.6 |
| client, max_in_flight 128 | 0.89 [0.86, 0.90] | 33.7 [33.5, 34.7] | 68 | 3.3 |
| plain groups of 64, each waiting for its slowest | 0.65 [0.54, 0.71] | 46.1 [42.0, 56.1] | 0 | 4.3 |

Conclusion: told the right number, the client keeps the endpoint 96 % busy, 91 % on a crowded machine. Told twice as
many, it finds 64 from the first second's 429 answers, probes four times, and loses two points. All ways bring the same
answers.

Run: python -m benchmarks.bench_client --repeats 3 --way "client, told 64"
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import openai
from pydantic import BaseModel

from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Answered, ChatRequest, Message
from safe_sail.llm.probe import Capabilities
from safe_sail.settings import LlmSettings

LATENCY_S = 1.5
ALLOWED = 64
N_REQUESTS = 1280
N_WARM = 128
PROMPT = "word " * 1000
REPLY = json.dumps({"explanation": "fires on words"})


class Explained(BaseModel):
    explanation: str


class CountingServer:
    """Answers after LATENCY_S, 429 above ALLOWED; integrates over time how many requests it was working on."""

    def __init__(self) -> None:
        self.open = self.answered = self.rejected = self.peak = 0
        self.busy_s = 0.0
        self.first = self.last = 0.0
        message = {"role": "assistant", "content": REPLY}
        usage = {"prompt_tokens": 1000, "completion_tokens": 8, "total_tokens": 1008}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
        self.good = _response(200, json.dumps(body))
        self.full = _response(429, '{"error": {"message": "too many"}}', "retry-after: 1\r\n")

    async def serve(self, pipe: Connection) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        while await asyncio.to_thread(pipe.recv) == "report":
            seconds = self.last - self.first
            share = self.busy_s / (seconds * ALLOWED)
            pipe.send(
                {
                    "busy": share,
                    "seconds": seconds,
                    "rejected": self.rejected,
                    "answered": self.answered,
                    "peak": self.peak,
                }
            )
            self.answered = self.rejected = self.peak = 0
            self.busy_s = self.first = 0.0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.first = self.first or time.monotonic()
                if self.open >= ALLOWED:
                    self.rejected += 1
                    writer.write(self.full)
                    continue
                self.open += 1
                self.peak = max(self.peak, self.open)
                await asyncio.sleep(LATENCY_S)
                self.open -= 1
                self.answered += 1
                self.busy_s += LATENCY_S
                self.last = time.monotonic()
                writer.write(self.good)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def _response(status: int, body: str, header: str = "") -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{header}content-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _run_server(pipe: Connection) -> None:
    asyncio.run(CountingServer().serve(pipe))


def requests(n: int) -> Iterator[ChatRequest]:
    for number in range(n):
        yield ChatRequest(
            request_id=str(number),
            messages=(Message("user", f"{number} {PROMPT}"),),
            prompt_version="bench/1",
            reply_type=Explained,
            max_tokens=100,
        )


async def ours(url: str, max_in_flight: int, n: int) -> list[str]:
    """Texts of all answers, through the client."""
    settings = LlmSettings(base_url=url, model="m", max_in_flight=max_in_flight, budget_tokens=10_000_000)
    known = Capabilities(schema=False, logprobs=False, usage=True)
    async with OpenAiClient(settings, capabilities=known) as client:
        outcomes = [outcome async for outcome in client.ask_all(requests(n))]
    assert client.total.attempts >= n
    return [outcome.text for outcome in outcomes if isinstance(outcome, Answered)]


async def in_groups(url: str, n: int) -> list[str]:
    """Texts of all answers, plainly: groups of ALLOWED, each waiting for its slowest call."""
    texts: list[str] = []
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:

        async def one(request: ChatRequest) -> str:
            messages: Any = [message._asdict() for message in request.messages]
            completion = await sdk.chat.completions.create(model="m", messages=messages, max_tokens=100)
            return completion.choices[0].message.content or ""

        todo = list(requests(n))
        for start in range(0, len(todo), ALLOWED):
            texts += await asyncio.gather(*map(one, todo[start : start + ALLOWED]))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--way", action="append", help="one of the three; all if absent")
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_run_server, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    ways = {
        "groups of 64": lambda n: in_groups(url, n),
        "client, told 64": lambda n: ours(url, ALLOWED, n),
        "client, told 128": lambda n: ours(url, 2 * ALLOWED, n),
    }
    results: dict[str, Any] = {"benchmark": "client", "latency_s": LATENCY_S, "allowed": ALLOWED, "n": N_REQUESTS}
    for name in options.way or ways:
        reports = []
        for n in (N_WARM, *[N_REQUESTS] * options.repeats):
            cpu = time.process_time()
            texts = asyncio.run(ways[name](n))
            assert texts == [REPLY] * n, "every way brings the same answers"
            here.send("report")
            reports.append({**here.recv(), "cpu_s": time.process_time() - cpu})
        kept = reports[1:]
        results[name] = {
            key: [round(f(report[key] for report in kept), 3) for f in (statistics.median, min, max)]
            for key in ("busy", "seconds", "rejected", "cpu_s")
        }
    results["load_average"] = os.getloadavg()[0]
    here.send("stop")
    server.join(5)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
