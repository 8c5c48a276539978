"""API keys: made and shown once, found by their prefix, compared in constant time, revoked.

A key is `sail_PREFIX_SECRET`. The secret has 256 random bits, so its plain SHA-256 cannot be guessed back.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.packing import is_plain_text
from db.tables import ApiKeyRow
from safe_sail.errors import BadInput, NotFound

_KEY = re.compile(r"sail_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = 100


class Scope(StrEnum):
    """What a key may do; each includes those before it."""

    READ = "read"
    """Every GET."""
    WRITE = "write"
    """Jobs too."""
    ADMIN = "admin"
    """Metrics too."""

    def includes(self, other: "Scope") -> bool:
        """Whether a key of this scope may do what needs the other."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """What is known of a key."""

    prefix: str
    name: str
    scope: Scope
    created: datetime
    revoked: datetime | None


def create_key(session: Session, name: str, scope: Scope) -> str:
    """The new key; this is the only time that anybody sees it.

    Raises:
        BadInput: the name is empty, too long or holds what no text column can keep.
    """
    if not (0 < len(name) <= _NAME and is_plain_text(name)):
        raise BadInput(f"a key's name says whose it is, in 1 to {_NAME} characters; got {name!r}.")
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    session.add(
        ApiKeyRow(
            prefix=prefix, secret_sha256=_digest(secret), name=name, scope=str(scope), created=datetime.now(UTC),
            revoked=None,
        )
    )  # fmt: skip
    session.flush()
    return f"sail_{prefix}_{secret}"


def find_key(session: Session, text: str) -> ApiKey | None:
    """The key of this text; None where there is none, or it is revoked."""
    match = _KEY.fullmatch(text)
    row = None if match is None else session.get(ApiKeyRow, match[1])
    # one comparison in any case, so that time tells nothing about which prefixes exist
    kept = _digest("") if row is None else row.secret_sha256
    same = hmac.compare_digest(kept, _digest("-" if match is None else match[2]))
    return _key(row) if row is not None and same and row.revoked is None else None


def list_keys(session: Session) -> list[ApiKey]:
    """All keys, oldest first."""
    return [_key(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created, ApiKeyRow.prefix))]


def revoke_key(session: Session, prefix: str) -> ApiKey:
    """The key, which nobody can use any more; revoking it again changes nothing.

    Raises:
        NotFound: no key has this prefix.
    """
    row = session.get(ApiKeyRow, prefix) if is_plain_text(prefix) else None
    if row is None:
        raise NotFound(f"no key has the prefix `{prefix}`; `safe-sail keys list` names those there are.")
    row.revoked = row.revoked or datetime.now(UTC)
    session.flush()
    return _key(row)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(prefix=row.prefix, name=row.name, scope=Scope(row.scope), created=row.created, revoked=row.revoked)
