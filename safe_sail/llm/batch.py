"""The same requests by files: OpenAI Batch lines out, result lines in, every request answered or failed exactly once.

1. `write_batch` claims the worst case of all requests from the budget, then writes files whole or not at all.
2. The user hands the files to the vendor and fetches the results.
3. `read_batch` matches lines by custom id; `BatchAnswers` does the same behind the interface of a client. A misfit
   answer is a failure here; ask it again with the client.
"""

import json
import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError

from safe_sail.errors import BadRecord, BatchUnreadable, JudgeError
from safe_sail.llm.account import Account
from safe_sail.llm.budget import Budget
from safe_sail.llm.endpoint import Reply, read_completion
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Outcome, Spending, Usage
from safe_sail.llm.pricing import Price
from safe_sail.llm.structured import read_answer, request_body
from safe_sail.llm.tokens import bound_tokens
from safe_sail.settings import LlmSettings

MAX_REQUESTS = 50_000
"""Lines of one file, the vendor's limit."""
MAX_BYTES = 190_000_000
"""Bytes of one file; the vendor's limit is 200 MB."""
_PATH = "/v1/chat/completions"


class _Line(BaseModel):
    custom_id: str
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _Written(NamedTuple):
    lines: list[bytes]
    bound: Usage


def write_batch(
    requests: Iterable[ChatRequest],
    folder: Path,
    *,
    settings: LlmSettings,
    price: Price | None,
    max_requests: int = MAX_REQUESTS,
) -> list[Path]:
    """Files `requests_000.jsonl`, ... that hold every request once; `price` is the batch's own.

    Raises:
        BudgetExhausted: all requests together could cost more than the settings' budget; nothing is written.
        PriceUnknown: the budget is in money and the price is None.
        BadRecord: a request id comes twice.
        BatchUnreadable: the folder already holds request files; a second batch would be paid for twice.
    """
    if any(folder.glob("requests_*.jsonl")):
        raise BatchUnreadable(f"{folder} already holds request files: read their results, or choose another folder.")
    written = _as_lines(requests, settings)
    Budget.of(settings, price).try_claim(written.bound)  # nothing else is claimed: it fits or raises
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, lines in enumerate(_chunks(written.lines, max_requests)):
        path = folder / f"requests_{number:03d}.jsonl"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(b"".join(lines))
        os.replace(unfinished, path)
        paths.append(path)
    return paths


def read_batch(requests: Iterable[ChatRequest], results: Sequence[Path], *, price: Price | None) -> list[Outcome]:
    """How each request ended, in the order of the requests; `results` are output and error files of all parts.

    Raises:
        BatchUnreadable: a file is missing, a line is damaged, repeated, or belongs to no request.
    """
    asked = list(requests)
    known = {request.request_id for request in asked}
    lines = _lines_by_id(results)
    for custom_id, (where, _) in lines.items():
        if custom_id not in known:
            raise BatchUnreadable(f"{where}: `{custom_id}` is none of the {len(known)} requests.")
    return [
        _outcome(request, lines[request.request_id][1] if request.request_id in lines else None, price)
        for request in asked
    ]


class BatchAnswers:
    """A `ChatClient` that answers from result files, and asks nobody: an explainer or judge cannot tell.

    A request that the files do not hold ends as `missing`. Lines that nobody asked about are left alone, so that files
    may be read again once some of their answers are kept.
    """

    def __init__(self, results: Sequence[Path], *, model: str, price: Price | None) -> None:
        """The answers of these files; `price` is the batch's own.

        Raises:
            BatchUnreadable: a file is missing, or a line is damaged or repeated.
        """
        self.model = model
        self.total = Spending(cost=Decimal(0))
        self._lines = _lines_by_id(results)
        self._price = price

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    async def ask(self, request: ChatRequest) -> Outcome:
        """How one request ended."""
        line = self._lines.get(request.request_id)
        outcome = _outcome(request, None if line is None else line[1], self._price)
        self.total = self.total.plus(outcome.spending)
        return outcome

    async def ask_all(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[Outcome, None]:
        """How each request ended, in their order."""
        for request in requests:
            yield await self.ask(request)


def _lines_by_id(results: Sequence[Path]) -> dict[str, tuple[str, _Line]]:
    """Each line and where it stands, by the id of its request."""
    lines: dict[str, tuple[str, _Line]] = {}
    for path in results:
        for number, line in _lines(path):
            where = f"{path.name}, line {number}"
            if line.custom_id in lines:
                raise BatchUnreadable(f"{where}: `{line.custom_id}` has a result already; give each file once.")
            lines[line.custom_id] = (where, line)
    return lines


def _as_lines(requests: Iterable[ChatRequest], settings: LlmSettings) -> _Written:
    lines: list[bytes] = []
    seen: set[str] = set()
    prompt = completion = 0
    for request in requests:
        if request.request_id in seen:
            raise BadRecord(f"request id `{request.request_id}` comes twice; results are told by their id.")
        seen.add(request.request_id)
        body = request_body(request, request.messages, settings, with_schema=True)
        line = {"custom_id": request.request_id, "method": "POST", "url": _PATH, "body": body}
        lines.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        prompt += bound_tokens(request.messages, str(body.get("response_format", "")))
        completion += request.max_tokens
    return _Written(lines, Usage(prompt, completion))


def _chunks(lines: Sequence[bytes], max_requests: int) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and (len(chunk) >= max_requests or size + len(line) > MAX_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield chunk


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, _parsed(text, f"{path.name}, line {number}")
    except OSError as error:
        raise BatchUnreadable(f"batch results {path}: expected a readable file; {error.strerror}.") from error


def _parsed(text: bytes, where: str) -> _Line:
    try:
        return _Line.model_validate_json(text)
    except ValidationError as error:
        raise BatchUnreadable(
            f"{where}: expected a result with a custom_id, got {len(text)} bytes that are none; fetch the file again."
        ) from error


def _outcome(request: ChatRequest, line: _Line | None, price: Price | None) -> Outcome:
    account = Account()
    if line is None:
        return _failed(request, account, FailureReason.MISSING, "no result has this request's id.", None)
    response = line.response or {}
    body = json.dumps(response.get("body") or {}, ensure_ascii=False)
    if line.error is not None or response.get("status_code") != 200:
        problem = json.dumps(line.error, ensure_ascii=False) if line.error else body
        status = response.get("status_code")
        message = f"the batch brought status {status}: {problem[:300]}."
        return _failed(request, account, _reason(status), message, problem)
    completion = read_completion(body.encode())
    if completion is None:
        message = "expected a chat completion, got another body with status 200."
        return _failed(request, account, FailureReason.BROKEN_RESPONSE, message, body)
    _charge(account, completion, request, price)
    if completion.refusal is not None:
        return _failed(request, account, FailureReason.MODEL_REFUSED, completion.refusal, completion.text or None)
    try:
        reply = read_answer(completion.text, request, truncated=completion.truncated)
    except JudgeError as error:
        reason = FailureReason.TRUNCATED if completion.truncated else FailureReason.INVALID_REPLY
        return _failed(request, account, reason, str(error), completion.text)
    return Answered(
        request_id=request.request_id, text=completion.text, reply=reply, spending=account.spending(), seconds=0.0
    )


def _reason(status: object) -> FailureReason:
    if isinstance(status, int) and 400 <= status < 500 and status != 429:
        return FailureReason.REQUEST_REFUSED
    return FailureReason.RATE_LIMITED if status == 429 else FailureReason.SERVER_ERROR


def _charge(account: Account, completion: Reply, request: ChatRequest, price: Price | None) -> None:
    used = completion.usage or Usage(bound_tokens(request.messages), request.max_tokens)
    cost = None if price is None else price.cost(used)
    account.add_attempt(used, reported=completion.usage is not None, cost=cost)


def _failed(request: ChatRequest, account: Account, reason: FailureReason, message: str, raw: str | None) -> Failed:
    return Failed(
        request_id=request.request_id,
        reason=reason,
        message=message,
        raw=raw,
        spending=account.spending(),
        seconds=0.0,
    )
