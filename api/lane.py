"""A short way to the answers that are asked for most: one feature, and a page of features.

The framework's way through its routers, dependencies and validation costs as much as these reads. The lane takes
plain, valid requests to these two addresses and calls the route's own function; every other request, and every one
that it would have to refuse, goes the framework's way, which says what is wrong. The tests compare the two ways.
"""

import re
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from api.access import require_access
from api.problems import respond
from api.routes.features import FeatureListQuery, get_feature, get_features
from safe_sail.errors import SafeSailError

_PATH = re.compile(r"/v1/saes/([A-Za-z0-9][A-Za-z0-9._-]{0,199})/features(?:/(0|[1-9][0-9]{0,8}))?")
TEMPLATES = ("/v1/saes/{sae}/features", "/v1/saes/{sae}/features/{index}")


class ShortLane:
    """ASGI layer between the request's frame and the framework."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        asked = _asked(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        if asked is None:
            await self.app(scope, receive, send)
            return
        sae, index, query = asked
        request, allowed = Request(scope), Response()
        try:
            await require_access(request, allowed)
            if index is not None:
                response = await get_feature(request, sae, index)
            else:
                response = await get_features(request, sae, query)
        except (SafeSailError, HTTPException) as error:
            response = await respond(request, error)
        response.raw_headers += [one for one in allowed.raw_headers if one[0].startswith(b"ratelimit")]
        scope["state"]["template"] = TEMPLATES[index is not None]
        await response(scope, receive, send)


def _asked(scope: Scope) -> tuple[str, int | None, Any] | None:
    """SAE, index and query of a request that the lane takes."""
    match = _PATH.fullmatch(scope["path"])
    if match is None:
        return None
    sae, index = match.groups()
    text = scope["query_string"]
    if index is not None:
        return None if text else (sae, int(index), None)
    query = _query(text.decode("latin-1"))
    return None if query is None else (sae, None, query)


def _query(text: str) -> FeatureListQuery | None:
    """The query of a page; None where the framework would refuse it."""
    given = parse_qsl(text, keep_blank_values=True) if text else []
    named = dict(given)
    if len(named) != len(given) or not named.keys() <= FeatureListQuery.model_fields.keys():
        return None
    try:
        return FeatureListQuery.model_validate(named)
    except ValidationError:
        return None
