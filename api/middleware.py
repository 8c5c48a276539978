"""What happens to every request before and after its route: an id, checks of host, origin and size, a limit of time,
the last catch, a line of the log and a count.

It is plain ASGI and the outermost layer, so that a refused host and an unexpected error carry the same headers.
"""

import asyncio
import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import SAFE_METHODS
from api.metrics import route_of
from api.problems import BY_STATUS, ProblemKind, logger, problem_response, unexpected

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_SECURITY = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in SECURITY_HEADERS.items()]
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestFrame:
    """ASGI layer around the whole app."""

    def __init__(self, app: ASGIApp, allowed_hosts: tuple[str, ...], max_body_bytes: int, seconds: float) -> None:
        self.app = app
        self.allowed_hosts = frozenset(allowed_hosts)
        self.max_body_bytes = max_body_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other scopes (lifespan) pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _CLIENT_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status: int | None = None

        async def send_framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given_names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode("ascii")),
                    *(header for header in _SECURITY if header[0] not in given_names),
                ]
            await send(message)

        request = Request(scope, receive)
        try:
            await self._serve(request, headers, send_framed)
        finally:
            seconds, route = time.perf_counter() - started, route_of(scope)
            scope["app"].state.metrics.count(request.method, route, status or 500, seconds)
            if logger.isEnabledFor(logging.INFO):
                told = {"request_id": request_id, "method": request.method, "path": request.url.path, "route": route}
                logger.info("request", extra=told | {"status": status, "ms": round(1000 * seconds, 1)})

    async def _serve(self, request: Request, headers: Headers, send: Send) -> None:
        """Refuse the request, or let the app answer it."""
        scope, receive = request.scope, request.receive
        host = _without_port(headers.get("host", ""))
        if host not in self.allowed_hosts:
            detail = f"Host `{host[:100]}` is not one of {', '.join(sorted(self.allowed_hosts))}."
            await problem_response(request, BY_STATUS[421], detail)(scope, receive, send)
            return
        refusal = self._refusal(request, headers)
        if refusal is not None:
            await problem_response(request, *refusal)(scope, receive, send)
            return
        answer = _TimedAnswer(request, send, self.seconds)
        try:
            await self.app(scope, self._counted(receive), answer.send)
        except Exception as error:
            if answer.has_begun:  # nothing true can be added to it
                raise
            await unexpected(request, error)(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not answer.is_late:
                raise
        finally:
            await answer.end()

    def _refusal(self, request: Request, headers: Headers) -> tuple[ProblemKind, str] | None:
        """Why a request that may change something is not served; None where it is."""
        if request.method in SAFE_METHODS:
            return None
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "none")
        # our pages send no referrer, so a browser calls the origin of their forms `null`, and says where they come from
        own_form = origin == "null" and site == "same-origin"
        other_origin = origin is not None and origin.partition("://")[2] != headers.get("host")
        if site not in ("none", "same-origin") or (other_origin and not own_form):
            return BY_STATUS[403], "A page of another origin may not change anything here."
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            return BY_STATUS[413], f"A body has at most {self.max_body_bytes} bytes; got {length}."
        return None

    def _counted(self, receive: Receive) -> Receive:
        """The same messages, until a body without a declared length grows too large."""
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self.max_body_bytes:
                raise HTTPException(413, f"A body has at most {self.max_body_bytes} bytes.")
            return message

        return counted


class _TimedAnswer:
    """An answer that must begin in time: if it does not, a problem is sent in its place and the route is given up.

    A route in a thread goes on until its statement ends, but nobody waits for it any more.
    """

    def __init__(self, request: Request, send: Send, seconds: float) -> None:
        self._request, self._send, self._seconds = request, send, seconds
        self._task = asyncio.current_task()
        self._problem: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)
        self.has_begun = self.is_late = False

    async def send(self, message: Message) -> None:
        """Passes on what the app sends, unless it is late."""
        if self.is_late:
            return
        self.has_begun = True
        self._timer.cancel()
        await self._send(message)

    async def end(self) -> None:
        """Waits for what is still being sent."""
        self._timer.cancel()
        if self._problem is not None:
            await self._problem

    def _expire(self) -> None:
        self.is_late = True
        self._problem = asyncio.create_task(self._refuse())
        if self._task is not None:
            self._task.cancel()

    async def _refuse(self) -> None:
        detail = f"The answer did not begin within {self._seconds:g} s; ask for less, or come again."
        response = problem_response(self._request, BY_STATUS[504], detail, headers={"Retry-After": "10"})
        await response(self._request.scope, self._request.receive, self._send)


def _without_port(host: str) -> str:
    """Host name of a Host header in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
