"""The table of API keys: what tells a key, never the key."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class ApiKeyRow(Base):
    """A key of the service, found by its prefix; only the SHA-256 of its secret is kept."""

    __tablename__ = "api_key"
    prefix: Mapped[str] = mapped_column(primary_key=True)
    secret_sha256: Mapped[str]
    name: Mapped[str]
    scope: Mapped[str]
    created: Mapped[datetime]
    revoked: Mapped[datetime | None]
