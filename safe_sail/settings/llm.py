"""Which language model is asked, how fast, and what it may cost."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from safe_sail.errors import BadSettings
from safe_sail.settings.checks import at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmSettings:
    """Which language model is asked over an OpenAI-compatible endpoint, how fast, and what it may cost.

    The key is not here: settings are kept with every run, a key never is.
    """

    base_url: str
    """Up to and with the version, as in `http://127.0.0.1:8000/v1`; never taken from a request."""
    model: str
    """Name that the endpoint knows the model by."""
    max_in_flight: int = 64
    """Requests open at once at most; cut when the endpoint answers 429, then raised again."""
    timeout_s: float = 120.0
    """Whole time of one attempt, in seconds; 20 times the median answer of a 70B model to 1,000 tokens."""
    connect_timeout_s: float = 10.0
    """Seconds until the connection stands."""
    max_attempts: int = 4
    """Attempts at one request that may end in a timeout, a cut connection or a 5xx; each is counted."""
    max_rejections: int = 12
    """429 answers to one request before it fails; they cost time, not tokens."""
    max_wait_s: float = 120.0
    """Longest `retry-after` obeyed; a longer one fails the request with its reason."""
    backoff_s: float = 0.5
    """Wait before the second attempt where the endpoint names none; doubles with each."""
    requests_per_minute: int | None = None
    """Rate that the endpoint allows; None where only its 429 answers say."""
    tokens_per_minute: int | None = None
    """Prompt and completion tokens a minute, by the estimate before the request."""
    budget_tokens: int | None = None
    """Prompt and completion tokens that all requests of a run may cost; None is no limit."""
    budget_money: float | None = None
    """US dollars that all requests of a run may cost; needs a known price. None is no limit."""
    cache_path: str | None = None
    """SQLite file of earlier answers; None asks anew every time."""
    completion_field: str = "max_tokens"
    """Field that limits the answer: `max_tokens`, or `max_completion_tokens` for models that want it."""
    temperature: float | None = 0.0
    """Spread of the answers; None for models that accept no temperature."""
    allow_plain_http: bool = False
    """Whether a key may travel over http to another machine."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in {"http", "https"} or not url.hostname or url.username or url.query or url.fragment:
            raise BadSettings(
                "LlmSettings.base_url is http(s)://host[:port]/path without user, query or fragment; "
                f"got scheme `{url.scheme}` and host `{url.hostname}`."
            )
        if not self.model:
            raise BadSettings("LlmSettings.model is the name that the endpoint knows the model by; got an empty one.")
        at_least(self, 1, "max_in_flight", "max_attempts", "max_rejections")
        for name in ("timeout_s", "connect_timeout_s", "max_wait_s", "backoff_s"):
            if not getattr(self, name) > 0:
                raise BadSettings(f"LlmSettings.{name} is a positive number of seconds; got {getattr(self, name)}.")
        for name in ("requests_per_minute", "tokens_per_minute", "budget_tokens", "budget_money"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadSettings(f"LlmSettings.{name} must be above 0, or None for no limit; got {value}.")
        if self.completion_field not in {"max_tokens", "max_completion_tokens"}:
            raise BadSettings(
                "LlmSettings.completion_field is `max_tokens` or `max_completion_tokens`; "
                f"got `{self.completion_field}`."
            )
