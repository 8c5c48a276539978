"""Asks a language model many things at once, within a budget, so that each ends answered or failed exactly once.

One request:
1. The cache is asked. A kept answer is validated anew and costs nothing.
2. An attempt enters the gate, waits for the pace, claims its worst case from the budget, and is sent.
3. It settles with the reported usage; where it may be billed but reported nothing, the whole claim counts as spent.
4. A 429, a 5xx, a timeout or a cut connection is tried again after the wait the endpoint asked for, so many times.
5. The answer is validated; one that does not fit is asked for again once, with what was wrong; then it is a failure.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from zlib import crc32

from pydantic import SecretStr

from safe_sail.errors import BadRecord, BudgetExhausted, JudgeError, LlmError
from safe_sail.llm.account import Account
from safe_sail.llm.budget import Budget
from safe_sail.llm.cache import CachedAnswer, ResponseCache, cache_key
from safe_sail.llm.endpoint import Endpoint, Fault, Reply
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Message, Outcome, Spending, Usage
from safe_sail.llm.limits import AdaptiveGate, Pace
from safe_sail.llm.pricing import PriceTable, load_prices
from safe_sail.llm.probe import PROBE_TOKENS, Capabilities, probe
from safe_sail.llm.structured import asked_again, read_answer, request_body
from safe_sail.llm.tokens import bound_tokens, estimate_prompt
from safe_sail.settings import LlmSettings

_ROUNDS = 2
"""The question, and one re-ask."""
_READY_LEAST = 4
"""Requests, or a quarter of those in flight, that stand ready at the gate: a free place is taken without waiting for
whoever consumes the outcomes; see benchmarks/bench_client.py."""


class ChatClient(Protocol):
    """Whatever answers chat requests; explainers and judges know no more of a language model."""

    @property
    def model(self) -> str:
        """Name of the model, as records carry it."""

    @property
    def total(self) -> Spending:
        """What everything cost so far, cancelled attempts included."""

    async def ask(self, request: ChatRequest) -> Outcome:
        """How one request ended."""

    def ask_all(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[Outcome, None]:
        """How each request ended, in the order in which they end."""


class _Question(NamedTuple):
    """One body to send and what it may cost."""

    body: Mapping[str, Any]
    bound: Usage
    estimate: int


class OpenAiClient:
    """A chat client over an OpenAI-compatible endpoint; an async context manager, which probes it first."""

    def __init__(
        self,
        settings: LlmSettings,
        *,
        api_key: SecretStr | None = None,
        prices: PriceTable | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        """A client not yet connected; `prices` is the shipped table, `capabilities` what a probe said before.

        Raises:
            PriceUnknown: the budget is in money and the table lacks the model.
            BadSettings: a key over plain http to another machine, or an unusable cache file.
        """
        self._settings = settings
        table = load_prices() if prices is None else prices
        self._price = table.price_of(base_url=settings.base_url, model=settings.model)
        self._budget = Budget.of(settings, self._price)
        self._gate = AdaptiveGate(settings.max_in_flight)
        self._requests_pace = Pace(settings.requests_per_minute)
        self._tokens_pace = Pace(settings.tokens_per_minute)
        self._endpoint = Endpoint(settings, api_key)
        self._cache = None if settings.cache_path is None else ResponseCache(Path(settings.cache_path))
        self._capabilities = capabilities
        self._total = Account()

    def __repr__(self) -> str:
        return f"OpenAiClient({self._settings.model} at {self._settings.base_url})"

    @property
    def model(self) -> str:
        """Name that the endpoint knows the model by."""
        return self._settings.model

    @property
    def total(self) -> Spending:
        """What everything cost so far: probes, failures and cancelled attempts included."""
        return self._total.spending()

    @property
    def in_flight_limit(self) -> int:
        """Requests admitted at once now; below the setting after 429 answers."""
        return self._gate.limit

    @property
    def capabilities(self) -> Capabilities:
        """What the endpoint was seen to do."""
        assert self._capabilities is not None, "known once the client is entered"
        return self._capabilities

    async def __aenter__(self) -> Self:
        if self._capabilities is None:
            try:
                self._capabilities = await probe(self._send_probe)
            except LlmError as error:
                await self.close()
                raise type(error)(f"{self._settings.model} at {self._settings.base_url}: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes connections and cache."""
        await self._endpoint.close()
        if self._cache is not None:
            self._cache.close()

    async def ask_all(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[Outcome, None]:
        """How each request ended, as they end; requests are drawn as others finish.

        Wrap it in `contextlib.aclosing` where the loop may be left early: closing cancels what is open.

        Raises:
            BadRecord: a request id comes twice.
        """
        source = iter(requests)
        seen: set[str] = set()
        open_tasks: set[asyncio.Task[Outcome]] = set()
        drained = False
        ahead = self._settings.max_in_flight + max(_READY_LEAST, self._settings.max_in_flight // 4)
        try:
            while True:
                while not drained and len(open_tasks) < ahead:
                    request = next(source, None)
                    if request is None:
                        drained = True
                        break
                    if request.request_id in seen:
                        raise BadRecord(
                            f"request id `{request.request_id}` comes twice; outcomes are told by their id."
                        )
                    seen.add(request.request_id)
                    open_tasks.add(asyncio.create_task(self.ask(request)))
                if not open_tasks:
                    return
                done, open_tasks = await asyncio.wait(open_tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)

    async def ask(self, request: ChatRequest) -> Outcome:
        """How one request ended; content-level and transport-level failures are outcomes, not exceptions."""
        started = time.monotonic()
        messages = request.messages
        question = self._question(request, messages)
        key = None if self._cache is None else self._key(request, question)
        if (kept := self._from_cache(request, key)) is not None:
            return kept
        account = Account()
        failure: tuple[FailureReason, str, str | None] | None = None
        for _ in range(_ROUNDS):
            result = await self._send(question, account, faults_allowed=self._settings.max_attempts)
            if isinstance(result, Fault):
                earlier = None if failure is None else failure[2]
                failure = (result.reason, result.message, result.raw or earlier)
                break
            if result.refusal is not None:
                failure = (FailureReason.MODEL_REFUSED, result.refusal, result.text or result.refusal)
                break
            try:
                reply = read_answer(result.text, request, truncated=result.truncated)
            except JudgeError as error:
                reason = FailureReason.TRUNCATED if result.truncated else FailureReason.INVALID_REPLY
                failure = (reason, str(error), result.text)
                if result.truncated:
                    break
                messages = (*request.messages, *asked_again(result.text, str(error)))
                question = self._question(request, messages)
                continue
            self._keep(request, key, result)
            seconds = time.monotonic() - started
            return Answered(
                request_id=request.request_id,
                text=result.text,
                reply=reply,
                spending=account.spending(),
                seconds=seconds,
            )
        assert failure is not None
        reason, message, raw = failure
        return Failed(
            request_id=request.request_id,
            reason=reason,
            message=message,
            raw=raw,
            spending=account.spending(),
            seconds=time.monotonic() - started,
        )

    async def _send(self, question: _Question, account: Account, *, faults_allowed: int) -> Reply | Fault:
        """The first reply, or the fault that ended the attempts."""
        faults = rejections = 0
        while True:
            result = await self._attempt(question, account)
            if isinstance(result, Reply) or not result.retryable:
                return result
            if result.reason is FailureReason.RATE_LIMITED:
                rejections += 1
            else:
                faults += 1
            if faults >= faults_allowed or rejections >= self._settings.max_rejections:
                return result
            wait = result.retry_after_s
            if wait is None:
                wait = self._backoff(question, faults + rejections)
            elif wait > self._settings.max_wait_s:
                longest = self._settings.max_wait_s
                return result._replace(
                    message=f"{result.message} It asks to wait {wait:g} s; LlmSettings.max_wait_s allows {longest:g}."
                )
            await asyncio.sleep(wait)

    async def _attempt(self, question: _Question, account: Account) -> Reply | Fault:
        await self._gate.enter()
        try:
            delay = max(self._requests_pace.delay(1), self._tokens_pace.delay(question.estimate))
            if delay > 0:
                await asyncio.sleep(delay)
            try:
                claim = await self._budget.claim(question.bound)
            except BudgetExhausted as error:
                return Fault(FailureReason.BUDGET_EXHAUSTED, str(error), None, False, None, False)
            reported: Usage | None = None
            billed = True  # also when cancelled while open: the endpoint may go on working
            try:
                result = await self._endpoint.attempt(question.body)
                reported = result.usage if isinstance(result, Reply) else None
                billed = isinstance(result, Reply) or result.maybe_billed
            finally:
                used = reported or (question.bound if billed else Usage(0, 0))
                cost = self._budget.settle(claim, used)
                for each in (account, self._total):
                    each.add_attempt(used, reported=reported is not None, cost=cost)
            if isinstance(result, Fault) and result.status == 429:
                self._gate.rejected(result.retry_after_s or 0.0)
            elif isinstance(result, Reply):
                self._gate.succeeded()
            return result
        finally:
            self._gate.leave()

    async def _send_probe(self, part: Mapping[str, Any]) -> Reply | Fault:
        body = {"model": self.model, self._settings.completion_field: PROBE_TOKENS, **part}
        bound = Usage(len(str(part)) + PROBE_TOKENS, PROBE_TOKENS)
        return await self._send(_Question(body, bound, sum(bound)), Account(), faults_allowed=1)

    def _question(self, request: ChatRequest, messages: tuple[Message, ...]) -> _Question:
        schema_honoured = self._capabilities is not None and self._capabilities.schema
        body = request_body(request, messages, self._settings, with_schema=schema_honoured)
        schema_text = str(body.get("response_format", ""))
        bound = Usage(bound_tokens(messages, schema_text), request.max_tokens)
        paced = self._settings.tokens_per_minute is not None
        return _Question(body, bound, estimate_prompt(messages) + request.max_tokens if paced else 0)

    def _backoff(self, question: _Question, n_failed: int) -> float:
        """Seconds before the next attempt: doubling, spread by up to a half so that requests do not return as one."""
        spread = crc32(str(question.body["messages"]).encode()) / 2**32
        wait = self._settings.backoff_s * 2.0 ** (n_failed - 1) * (1 + spread / 2)
        return min(self._settings.max_wait_s, wait)

    def _key(self, request: ChatRequest, question: _Question) -> str:
        return cache_key(
            base_url=self._settings.base_url,
            body=question.body,
            prompt_version=request.prompt_version,
            sample=request.sample,
        )

    def _from_cache(self, request: ChatRequest, key: str | None) -> Answered | None:
        if self._cache is None or key is None or (kept := self._cache.get(key)) is None:
            return None
        try:
            reply = read_answer(kept.text, request, truncated=False)
        except JudgeError:
            self._cache.drop(key)  # the form of the answer has changed since: ask anew
            return None
        self._total.cache_hits += 1
        return Answered(
            request_id=request.request_id,
            text=kept.text,
            reply=reply,
            spending=Spending(cost=Decimal(0), cache_hits=1),
            seconds=0.0,
        )

    def _keep(self, request: ChatRequest, key: str | None, result: Reply) -> None:
        if self._cache is None or key is None:
            return
        prompt, completion = result.usage or (None, None)
        answer = CachedAnswer(result.text, prompt, completion)
        self._cache.put(key, answer, model=self.model, prompt_version=request.prompt_version)
