"""Answers kept between runs, in one SQLite file that several processes may share.

The key is a hash of everything that decides the answer: endpoint, model, the request's body and the prompt version.
Only answers that had the right form are kept; values are text and numbers, never code.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from safe_sail.errors import BadSettings

_BUSY_MS = 30_000
"""How long a process waits for another's write; a write takes about a millisecond."""
_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, prompt_version TEXT NOT NULL, text TEXT NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, created TEXT NOT NULL
) WITHOUT ROWID"""


class CachedAnswer(NamedTuple):
    """One answer as it was given."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def cache_key(*, base_url: str, body: Mapping[str, object], prompt_version: str, sample: int) -> str:
    """SHA-256 of the canonical request, as hexadecimal; the body names the model."""
    parts = {"base_url": base_url, "body": body, "prompt_version": prompt_version, "sample": sample}
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ResponseCache:
    """Answers by key, in a SQLite file; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        """The cache in this file, which is made if it is missing.

        Raises:
            BadSettings: the file cannot be opened, or is no such cache.
        """
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_MS / 1000)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise BadSettings(f"response cache {path}: expected a writable SQLite file; {error}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> CachedAnswer | None:
        """Answer under the key; None without one."""
        row = self._connection.execute(
            "SELECT text, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else CachedAnswer(*row)

    def put(self, key: str, answer: CachedAnswer, *, model: str, prompt_version: str) -> None:
        """Keeps the answer; one that is already there stays, so that every process reads the same."""
        self._connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
            (key, model, prompt_version, *answer, datetime.now(UTC).isoformat(timespec="seconds")),
        )

    def drop(self, key: str) -> None:
        """Forgets the answer under the key, if there is one."""
        self._connection.execute("DELETE FROM answers WHERE key = ?", (key,))

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
