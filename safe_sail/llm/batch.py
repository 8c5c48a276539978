"""The same requests by files: OpenAI Batch lines out, result lines in, every request answered or failed exactly once.

1. `write_batch` claims the worst case of all requests from the budget, then writes files whole or not at all.
2. The user hands the files to the vendor and fetches the results.
3. `read_batch` matches lines by custom id; `BatchAnswers` does the same behind the interface of a client.
4. What the files do not answer is kept for the next batch: later calls of a judge, re-asks of answers that did not fit,
   what the vendor failed to do. So a run of several rounds is a chain of files, each read beside all those before it.

A line's id ends in a hash of its messages: an answer is taken for the question that it was asked, and for no other that
has come to bear its name.
"""

import json
import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError

from safe_sail.errors import BadRecord, BatchUnreadable, JudgeError
from safe_sail.llm.account import Account
from safe_sail.llm.budget import Budget
from safe_sail.llm.endpoint import Reply, read_completion
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Outcome, Spending, Usage
from safe_sail.llm.pricing import Price
from safe_sail.llm.structured import asked_again, read_answer, request_body
from safe_sail.llm.tokens import bound_tokens
from safe_sail.settings import LlmSettings

MAX_REQUESTS = 50_000
"""Lines of one file, the vendor's limit."""
MAX_BYTES = 190_000_000
"""Bytes of one file; the vendor's limit is 200 MB."""
_PATH = "/v1/chat/completions"
_PASSING = frozenset({FailureReason.MISSING, FailureReason.RATE_LIMITED, FailureReason.SERVER_ERROR})
"""Failures that a further batch may mend: nothing came, or the vendor could not."""


class _Line(BaseModel):
    custom_id: str
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _Written(NamedTuple):
    lines: list[bytes]
    bound: Usage


def line_id(request: ChatRequest) -> str:
    """The id of a request's line: its own, and what is asked."""
    asked = json.dumps([*request.messages, request.sample], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return f"{request.request_id}~{blake2b(asked, digest_size=6).hexdigest()}"


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
        BadRecord: a request comes twice.
        BatchUnreadable: the folder already holds request files; a second batch would be paid for twice.
    """
    require_no_requests(folder)
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


def require_no_requests(folder: Path) -> None:
    """Nothing, where the folder may take request files.

    Raises:
        BatchUnreadable: it holds some already.
    """
    if any(folder.glob("requests_*.jsonl")):
        raise BatchUnreadable(f"{folder} already holds request files: read their results, or choose another folder.")


def read_batch(requests: Iterable[ChatRequest], results: Sequence[Path], *, price: Price | None) -> list[Outcome]:
    """How each request ended, in the order of the requests; `results` are output and error files of all parts.

    Raises:
        BatchUnreadable: a file is missing, a line is damaged, repeated, or belongs to no request.
    """
    asked = list(requests)
    known = {line_id(request) for request in asked}
    lines = _lines_by_id(results)
    for custom_id, (where, _) in lines.items():
        if custom_id not in known:
            raise BatchUnreadable(f"{where}: `{custom_id}` is none of the {len(known)} requests.")
    return [_outcome(request, lines, price) for request in asked]


class BatchAnswers:
    """A `ChatClient` that answers from result files, and asks nobody: an explainer or judge cannot tell.

    Lines that nobody asked about are left alone, so that files may be read again once some of their answers are kept.
    """

    def __init__(self, results: Sequence[Path], *, model: str, price: Price | None, asks_on: bool = False) -> None:
        """The answers of these files; `price` is the batch's own.

        Where a further batch will follow (`asks_on`), what the files leave open ends as `waiting`. Where none will, a
        request without a line ends as `missing`, and an answer that does not fit is a failure.

        Raises:
            BatchUnreadable: a file is missing, or a line is damaged or repeated.
        """
        self.model = model
        self.total = Spending(cost=Decimal(0))
        self.to_ask: list[ChatRequest] = []
        """The requests of the next batch."""
        self._lines = _lines_by_id(results)
        self._price, self._asks_on = price, asks_on

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    async def ask(self, request: ChatRequest) -> Outcome:
        """How one request ended; an answer that did not fit is followed by its re-ask, if that has been asked."""
        outcome, asked = _outcome(request, self._lines, self._price), request
        if isinstance(outcome, Failed) and outcome.reason is FailureReason.INVALID_REPLY:
            again = replace(request, messages=(*request.messages, *asked_again(outcome.raw or "", outcome.message)))
            if self._asks_on or line_id(again) in self._lines:
                second, asked = _outcome(again, self._lines, self._price), again
                outcome = replace(second, spending=outcome.spending.plus(second.spending))
        self.total = self.total.plus(outcome.spending)
        if self._asks_on and isinstance(outcome, Failed) and outcome.reason in _PASSING:
            self.to_ask.append(asked)
            return replace(outcome, reason=FailureReason.WAITING, message="it waits for the next batch.")
        return outcome

    async def ask_all(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[Outcome, None]:
        """How each request ended, in their order."""
        for request in requests:
            yield await self.ask(request)


def _lines_by_id(results: Sequence[Path]) -> dict[str, tuple[str, _Line]]:
    """Each line and where it stands, by its id; of a line that failed and one that did not, the one that did not."""
    lines: dict[str, tuple[str, _Line]] = {}
    for path in results:
        for number, line in _lines(path):
            where = f"{path.name}, line {number}"
            earlier = lines.get(line.custom_id)
            if earlier is None or not _is_done(earlier[1]):
                lines[line.custom_id] = (where, line)
            elif _is_done(line):
                raise BatchUnreadable(f"{where}: `{line.custom_id}` has a result already; give each file once.")
    return lines


def _is_done(line: _Line) -> bool:
    return line.error is None and (line.response or {}).get("status_code") == 200


def _as_lines(requests: Iterable[ChatRequest], settings: LlmSettings) -> _Written:
    lines: list[bytes] = []
    seen: set[str] = set()
    prompt = completion = 0
    for request in requests:
        custom_id = line_id(request)
        if custom_id in seen:
            raise BadRecord(f"request id `{request.request_id}` comes twice; results are told by their id.")
        seen.add(custom_id)
        body = request_body(request, request.messages, settings, with_schema=True)
        line = {"custom_id": custom_id, "method": "POST", "url": _PATH, "body": body}
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


def _outcome(request: ChatRequest, lines: Mapping[str, tuple[str, _Line]], price: Price | None) -> Outcome:
    account = Account()
    _, line = lines.get(line_id(request), ("", None))
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
