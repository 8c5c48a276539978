"""Who may do what: keys and their scopes, and how much of it, by token buckets in this process.

1. A service on a loopback address asks for no key; beyond it every request but health and static files needs one.
2. GET needs the scope read, everything else write. The key comes as `Authorization: Bearer KEY`, `X-API-Key: KEY`, or
   as the password of Basic, which is how a browser asks a person for it.
3. Each key has a bucket for reads and one for writes; an empty one answers 429 and says when to come again. Wrong keys
   empty a bucket of their sender's address, so that nobody tries many.
"""

import base64
import binascii
import math
import time
from dataclasses import dataclass, field

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from api.settings import ServiceSettings, listens_on_loopback
from db.engine import reading
from db.keys import ApiKey, Scope, find_key

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_GUESSES_PER_MINUTE = 30
_REMEMBERED = 10_000
"""Buckets kept at most; full ones tell nothing and are dropped first."""


@dataclass
class Buckets:
    """Token buckets by name: each holds what a minute allows and fills up steadily."""

    kept: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name to tokens and the moment they were counted."""

    def take(self, name: str, per_minute: int, now: float | None = None) -> tuple[int, float]:
        """Tokens left after taking one, and seconds until there is one; where none was left, -1 and that time."""
        now = time.monotonic() if now is None else now
        tokens, then = self.kept.get(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - then) * per_minute / 60)
        taken = tokens >= 1
        tokens -= 1 if taken else 0
        if len(self.kept) >= _REMEMBERED and name not in self.kept:
            self.kept.pop(next(iter(self.kept)))
        self.kept[name] = (tokens, now)
        wait = max(0.0, (1 - tokens) * 60 / per_minute)
        return (math.floor(tokens) if taken else -1), wait


async def require_access(request: Request, response: Response) -> None:
    """Nothing, where the request may be served.

    Raises:
        HTTPException: 401 without a valid key where one is needed, 403 where its scope is too small, 429 where its
            bucket is empty.
    """
    settings: ServiceSettings = request.app.state.settings
    given = _given_key(request)
    if given is None and listens_on_loopback(settings.host):
        return
    buckets: Buckets = request.app.state.buckets
    sender = request.client.host if request.client else "unknown"
    key = None if given is None else await run_in_threadpool(_look_up, request, given)
    if key is None:
        left, wait = buckets.take(f"guess {sender}", _GUESSES_PER_MINUTE)
        if left < 0:
            raise _too_many("guess", wait)
        raise HTTPException(
            401, "A key is needed: `Authorization: Bearer KEY`, as `safe-sail keys create` shows it once.",
            headers={"WWW-Authenticate": 'Bearer realm="safe-sail", Basic realm="safe-sail"'},
        )  # fmt: skip
    is_read = request.method in SAFE_METHODS
    needed = Scope.READ if is_read else Scope.WRITE
    if request.url.path == "/metrics":
        needed = Scope.ADMIN
    if not key.scope.includes(needed):
        raise HTTPException(403, f"This needs a key of scope {needed}; yours has {key.scope}.")
    kind, per_minute = ("read", settings.reads_per_minute) if is_read else ("write", settings.writes_per_minute)
    left, wait = buckets.take(f"{kind} {key.prefix}", per_minute)
    if left < 0:
        raise _too_many(kind, wait)
    response.headers["RateLimit-Policy"] = f'"{kind}";q={per_minute};w=60'
    response.headers["RateLimit"] = f'"{kind}";r={left};t={math.ceil(wait)}'


def _too_many(kind: str, wait: float) -> HTTPException:
    seconds = max(1, math.ceil(wait))
    return HTTPException(
        429, f"Too many requests; come again in {seconds} s.",
        headers={"Retry-After": str(seconds), "RateLimit": f'"{kind}";r=0;t={seconds}'},
    )  # fmt: skip


def _look_up(request: Request, given: str) -> ApiKey | None:
    with reading(request.app.state.engine) as session:
        return find_key(session, given)


def _given_key(request: Request) -> str | None:
    """The key that the request brings; an empty text for one that cannot be read."""
    plain = request.headers.get("x-api-key")
    if plain is not None:
        return plain
    how, _, text = request.headers.get("authorization", "").partition(" ")
    if how.lower() == "bearer":
        return text.strip()
    if how.lower() == "basic":
        try:
            return base64.b64decode(text, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return "" if how else None
