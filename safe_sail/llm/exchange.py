"""What is asked of a language model and what comes of it: requests, answers, failures and what they cost."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel

from safe_sail.errors import BadRecord

_ID_LIMIT = 256
"""Characters of a request id; result files carry it back."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """One question to a language model, and what counts as an answer to it."""

    request_id: str
    """Names the request in outcomes and batch files; unique within a run."""
    messages: tuple[Message, ...]
    prompt_version: str
    """Changes whenever the prompt's text or the rule that builds it changes; part of the cache key."""
    reply_type: type[BaseModel] | None = None
    """Form of the answer; None takes any text."""
    check: Callable[[BaseModel], object] | None = None
    """Called with the validated answer; raises JudgeError where the form is right and the content is not."""
    max_tokens: int = 1024
    """Tokens of the answer at most, thinking included."""
    seed: int | None = None
    """Asked of the endpoint; few keep it."""
    sample: int = 0
    """Counts repeated samples of one question, so that the cache keeps them apart."""

    def __post_init__(self) -> None:
        if not 0 < len(self.request_id) <= _ID_LIMIT:
            raise BadRecord(f"a request id has 1 to {_ID_LIMIT} characters; got {len(self.request_id)}.")
        if not self.messages or not self.prompt_version:
            raise BadRecord(f"request `{self.request_id}` needs a message and a prompt version.")
        if self.max_tokens < 1:
            raise BadRecord(f"request `{self.request_id}` needs max_tokens of at least 1; got {self.max_tokens}.")


class FailureReason(StrEnum):
    """Why a request ended without an answer."""

    BUDGET_EXHAUSTED = "budget_exhausted"
    """The next attempt could have exceeded the budget; nothing was sent."""
    RATE_LIMITED = "rate_limited"
    """429 until the allowed rejections were used up, or a `retry-after` longer than allowed."""
    QUOTA_EXHAUSTED = "quota_exhausted"
    """429 that says that the account has nothing left."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Connection refused or cut."""
    SERVER_ERROR = "server_error"
    """5xx, 408 or 409 until the allowed attempts were used up."""
    BROKEN_RESPONSE = "broken_response"
    """200 whose body is no chat completion."""
    REQUEST_REFUSED = "request_refused"
    """Another 4xx, or a redirect, which is never followed."""
    MODEL_REFUSED = "model_refused"
    """The model or the vendor's filter declined to answer."""
    TRUNCATED = "truncated"
    """The answer hit max_tokens before it was complete."""
    INVALID_REPLY = "invalid_reply"
    """The answer did not fit its form, also after one re-ask."""
    MISSING = "missing"
    """A batch came back without a line for this request."""
    WAITING = "waiting"
    """It goes into the next batch file: nobody was asked yet, or the answer did not fit and is asked for again."""


class Usage(NamedTuple):
    """Tokens of one attempt, as the endpoint reports them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """What one request, or all of them, cost."""

    attempts: int = 0
    """HTTP requests sent; 0 for an answer from the cache."""
    prompt_tokens: int = 0
    """As reported by the endpoint, over all attempts."""
    completion_tokens: int = 0
    """As reported by the endpoint, over all attempts."""
    assumed_tokens: int = 0
    """Upper bound for attempts that may be billed but reported nothing: timeouts, cut connections, 5xx."""
    cost: Decimal | None = None
    """US dollars for reported and assumed tokens at the list price; None where the price is unknown."""
    cache_hits: int = 0
    """1 for an answer from the cache; their number in a sum."""

    @property
    def tokens(self) -> int:
        """Tokens counted against the budget."""
        return self.prompt_tokens + self.completion_tokens + self.assumed_tokens

    def plus(self, other: "Spending") -> "Spending":
        """Sum of both; a sum with an unknown cost is unknown."""
        known = self.cost is not None and other.cost is not None
        return Spending(
            attempts=self.attempts + other.attempts,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            assumed_tokens=self.assumed_tokens + other.assumed_tokens,
            cost=(self.cost or Decimal(0)) + (other.cost or Decimal(0)) if known else None,
            cache_hits=self.cache_hits + other.cache_hits,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A request that ended with an answer of the right form."""

    request_id: str
    text: str
    """What the model wrote, whole."""
    reply: BaseModel | None
    """The answer in the request's reply type; None where the request had none."""
    spending: Spending
    seconds: float
    """From the first claim to the answer, waits included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A request that ended without an answer: counted, never a zero."""

    request_id: str
    reason: FailureReason
    message: str
    """What was expected and what came, without any key."""
    raw: str | None
    """Last text that the model or the endpoint wrote, whole; None where nothing came."""
    spending: Spending
    seconds: float

    @property
    def attempts(self) -> int:
        """HTTP requests sent for it."""
        return self.spending.attempts


Outcome = Answered | Failed
