"""One HTTP attempt at an OpenAI-compatible endpoint; the only caller of the SDK.

1. The SDK's own retries are off: attempts are ours and counted. Redirects are off.
2. The SDK reads keys, organisations and headers from the environment; here only the settings count, so headers
   outside a short list are taken off every request and proxies of the environment are not used.
3. The body is read by our own types: a 200 proves nothing about it.
4. What comes is a `Reply` or a `Fault` that says whether to try again, when, and whether it may be billed.
"""

import asyncio
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import BaseModel, Field, SecretStr, ValidationError

from safe_sail.errors import BadSettings
from safe_sail.llm.exchange import FailureReason, Usage
from safe_sail.settings import LlmSettings

_HEADERS = re.compile(
    r"host|accept(-encoding)?|connection|authorization|content-(type|length)|user-agent|x-stainless-.*"
)
_NO_KEY = "no-key"
_RAW_LIMIT = 20_000
"""Characters of a broken response that are kept."""


class Reply(NamedTuple):
    """What the model answered in one attempt."""

    text: str
    refusal: str | None
    """The model's own refusal, or the vendor's filter; None for an answer."""
    truncated: bool
    usage: Usage | None
    """None where the endpoint reports none."""
    has_logprobs: bool


class Fault(NamedTuple):
    """Why one attempt brought no answer."""

    reason: FailureReason
    message: str
    status: int | None
    retryable: bool
    retry_after_s: float | None
    """As the endpoint asked; None where it did not."""
    maybe_billed: bool
    """Whether the model may have worked on it all the same."""
    raw: str | None = None


class _WireMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _WireChoice(BaseModel):
    message: _WireMessage
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _WireUsage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class _WireCompletion(BaseModel):
    choices: list[_WireChoice] = Field(min_length=1)
    usage: _WireUsage | None = None


class Endpoint:
    """An open door to one model; close it when done."""

    def __init__(self, settings: LlmSettings, api_key: SecretStr | None) -> None:
        """The endpoint of the settings, not yet contacted.

        Raises:
            BadSettings: a key would travel over plain http to another machine.
        """
        _refuse_plain_http(settings, api_key)
        self._settings = settings
        self._key = api_key
        timeout = httpx2.Timeout(settings.timeout_s, connect=settings.connect_timeout_s)
        limits = httpx2.Limits(max_connections=settings.max_in_flight, max_keepalive_connections=settings.max_in_flight)
        self._http = httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=timeout,
            limits=limits,
            event_hooks={"request": [self._keep_known_headers]},
        )
        self._sdk = openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=_NO_KEY if api_key is None else api_key.get_secret_value(),
            max_retries=0,
            timeout=timeout,
            http_client=self._http,
        )

    def __repr__(self) -> str:
        return f"Endpoint({self._settings.model} at {self._settings.base_url})"

    async def attempt(self, body: Mapping[str, Any]) -> Reply | Fault:
        """What one POST of this body to /chat/completions brings."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                # `post` instead of `chat.completions.create`: the same bytes without a walk through the SDK's types
                response = await self._sdk.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except (TimeoutError, openai.APITimeoutError):
            return self._fault(
                FailureReason.TIMEOUT, f"no answer within {self._settings.timeout_s:g} s", retryable=True, billed=True
            )
        except openai.APIStatusError as error:
            return self._status_fault(error)
        except openai.APIConnectionError as error:
            refused = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
            cause = type(error.__cause__).__name__ if error.__cause__ else "connection error"
            message = "no connection to the endpoint" if refused else f"the connection was cut ({cause})"
            return self._fault(FailureReason.CONNECTION, message, retryable=True, billed=not refused)
        return self._read(response.content)

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    def redacted(self, text: str) -> str:
        """The text without the key; endpoints repeat it in their refusals."""
        secret = "" if self._key is None else self._key.get_secret_value()
        return text.replace(secret, "[key]") if secret else text

    async def _keep_known_headers(self, request: httpx2.Request) -> None:
        for name in [name for name in request.headers if not _HEADERS.fullmatch(name.lower())]:
            del request.headers[name]
        if self._key is None:
            del request.headers["authorization"]

    def _read(self, content: bytes) -> Reply | Fault:
        reply = read_completion(content)
        if reply is not None:
            return reply
        return self._fault(
            FailureReason.BROKEN_RESPONSE,
            f"expected a chat completion, got 200 with {len(content)} bytes that are none",
            retryable=True,
            billed=True,
            raw=content.decode(errors="replace"),
        )

    def _status_fault(self, error: openai.APIStatusError) -> Fault:
        status = error.status_code
        body = error.response.text
        if status == 429:
            spent = "insufficient_quota" in body
            reason = FailureReason.QUOTA_EXHAUSTED if spent else FailureReason.RATE_LIMITED
            retryable, billed = not spent, False
        elif status >= 500 or status in {408, 409}:
            reason, retryable, billed = FailureReason.SERVER_ERROR, True, True
        else:
            reason, retryable, billed = FailureReason.REQUEST_REFUSED, False, False
        first_line = " ".join(body.split())[:300]
        message = f"the endpoint answered {status}: {first_line}" if first_line else f"the endpoint answered {status}"
        wait = _retry_after(error.response.headers)
        return self._fault(
            reason, message, status=status, retryable=retryable, wait=wait, billed=billed, raw=body or None
        )

    def _fault(
        self,
        reason: FailureReason,
        message: str,
        *,
        retryable: bool,
        billed: bool,
        status: int | None = None,
        wait: float | None = None,
        raw: str | None = None,
    ) -> Fault:
        kept = None if raw is None else self.redacted(raw)[:_RAW_LIMIT]
        return Fault(reason, f"{self.redacted(message)}.", status, retryable, wait, billed, kept)


def read_completion(content: bytes) -> Reply | None:
    """The reply in the body of a chat completion; None where the body is none."""
    try:
        completion = _WireCompletion.model_validate_json(content)
    except ValidationError:
        return None
    choice = completion.choices[0]
    filtered = "stopped by the vendor's content filter" if choice.finish_reason == "content_filter" else None
    usage = completion.usage
    return Reply(
        text=choice.message.content or "",
        refusal=choice.message.refusal or filtered,
        truncated=choice.finish_reason == "length",
        usage=None if usage is None else Usage(usage.prompt_tokens, usage.completion_tokens),
        has_logprobs=bool(choice.logprobs),
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `retry-after` (seconds or a date) ask for; None without a readable one."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass  # not a number: the next header, or a date
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time())
    except ValueError:
        return None


def _refuse_plain_http(settings: LlmSettings, api_key: SecretStr | None) -> None:
    url = urlsplit(settings.base_url)
    if api_key is None or url.scheme == "https" or settings.allow_plain_http or _is_loopback(url.hostname or ""):
        return
    raise BadSettings(
        f"a key would travel over plain http to {url.hostname}: use https, or set allow_plain_http on a network "
        "where nobody listens."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
