"""The checks that records run on themselves."""

import re

from safe_sail.errors import BadRecord

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def require(holds: bool, message: str) -> None:
    """Nothing, when it holds; else BadRecord with the message."""
    if not holds:
        raise BadRecord(message)


def require_slug(kind: str, slug: str) -> None:
    """Nothing, when the slug can stand in a path; else BadRecord."""
    require(
        _SLUG.fullmatch(slug) is not None,
        f"{kind} `{slug}` is no slug; expected letters, digits, `.`, `_`, `-`, first a letter or a digit.",
    )
