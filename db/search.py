"""Full-text search over explanations: FTS5 on SQLite, a generated `tsvector` on PostgreSQL, one function for both.

A query is words; every word must occur, and each may be the beginning of a longer one (`bomb` finds `bombs`). Case does
not matter; nothing is stemmed and no word is too common. Everything that is no letter or digit separates words, so no
text of a user reaches the database's query language.

`create_search` builds what searching needs. **Every migration that rebuilds the table `explanation` must call it
again**: Alembic's batch mode copies the table on SQLite and drops its triggers without a word, and the index would then
stop following the table.
"""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Double,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae, require_limit
from safe_sail.records import FeatureId

SEARCH_OBJECTS = ("explanation_fts", "explanation_vector")
"""Beginnings of the names of what `create_search` builds; the tables' metadata does not know them."""

_MAX_WORDS = 16  # of a query; the rest is left out, so that a pasted page does not become a query of a thousand terms
_MAX_WORD = 64
_MAX_TEXT = 100_000  # characters of a text that are indexed on PostgreSQL, whose tsvector holds one megabyte

# --------------------------------------------------------------------------------------------- 1. the index


def create_search(connection: Connection) -> None:
    """Builds the index, its triggers and their content anew; may be called any number of times."""
    statements = _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL
    for statement in statements:
        connection.exec_driver_sql(statement)


def _place(row: str) -> str:
    """Number of an explanation in the index: its feature, then itself, so that hits come in the order of features."""
    return f"({row}feature_index << {_KEY_BITS}) + {row}explanation_key"


_KEY_BITS = 32
_ADD = f"INSERT INTO explanation_fts(rowid, text) VALUES ({_place('new.')}, new.text);"
_DROP = f"INSERT INTO explanation_fts(explanation_fts, rowid, text) VALUES ('delete', {_place('old.')}, old.text);"

_SQLITE = (
    "DROP TRIGGER IF EXISTS explanation_fts_insert",
    "DROP TRIGGER IF EXISTS explanation_fts_delete",
    "DROP TRIGGER IF EXISTS explanation_fts_update",
    "DROP TABLE IF EXISTS explanation_fts",
    """CREATE VIRTUAL TABLE explanation_fts USING fts5(
    text, content='', tokenize='unicode61 remove_diacritics 0')""",
    *(
        f"""CREATE TRIGGER explanation_fts_{name} AFTER {event} ON explanation BEGIN
    {body}
END"""
        for name, event, body in (
            ("insert", "INSERT", _ADD),
            ("delete", "DELETE", _DROP),
            ("update", "UPDATE OF text, explanation_key, feature_index", f"{_DROP}\n    {_ADD}"),
        )
    ),
    f"INSERT INTO explanation_fts(rowid, text) SELECT {_place('')}, text FROM explanation",
)

_PUNCTUATION = (  # ASCII, Latin-1, General Punctuation, CJK punctuation; a regular expression of PostgreSQL
    r"\u0001-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a9\u00ab-\u00b1\u2000-\u206f\u3000-\u303f"
)
_POSTGRESQL = (
    # punctuation becomes blanks first, as in a query: PostgreSQL's own parser would keep `a/b` or `x@y.z` as one word.
    # Code points, not [:punct:]: what that means depends on the server's locale.
    f"""ALTER TABLE explanation ADD COLUMN IF NOT EXISTS explanation_vector tsvector GENERATED ALWAYS AS (
    to_tsvector('simple', regexp_replace(left(text, {_MAX_TEXT}), '[{_PUNCTUATION}]+', ' ', 'g'))) STORED""",
    "CREATE INDEX IF NOT EXISTS explanation_vector_gin ON explanation USING gin (explanation_vector)",
)

# --------------------------------------------------------------------------------------------- 2. the query


@dataclass(frozen=True, slots=True)
class SearchHit:
    """An explanation that matches."""

    feature: FeatureId
    explainer: str
    prompt_version: str
    text: str
    relevance: float
    """Higher is better; bm25 on SQLite, ts_rank on PostgreSQL, not to be compared between the two."""


def words_of(query: str) -> list[str]:
    """The words of a user's query: runs of letters and digits, at most 16 of at most 64 characters."""
    return [word[:_MAX_WORD] for word in re.findall(r"[^\W_]+", query)[:_MAX_WORDS]]


def search_features(session: Session, query: str, *, sae: str | None = None, limit: int = 50) -> list[SearchHit]:
    """Explanations that hold every word of the query, best first (ties: first stored); none for a query without words.

    Raises:
        NotFound: no SAE has this slug.
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    sae_key = None if sae is None else find_sae(session, sae).sae_key
    words = query_text(query, on_sqlite=session.get_bind().dialect.name == "sqlite")
    if words is None:
        return []
    row, owner = tables.ExplanationRow, tables.SaeRow
    on_sqlite = session.get_bind().dialect.name == "sqlite"
    ranking = _relevance(on_sqlite)
    found: Any = select(owner.slug, row.feature_index, row.explainer, row.prompt_version, row.text, ranking)
    found = _matching_rows(found, on_sqlite).join(owner, owner.sae_key == row.sae_key)
    if sae_key is not None:
        found = found.where(row.sae_key + 0 == sae_key)  # the sum keeps SQLite from beginning with this index
    found = found.order_by(ranking.desc(), row.explanation_key).limit(limit)
    return [
        SearchHit(FeatureId(sae=slug, index=index), explainer, version, said, float(rank))
        for slug, index, explainer, version, said, rank in session.execute(found, {"words": words})
    ]


def query_text(query: str, *, on_sqlite: bool) -> str | None:
    """A user's query in the database's language, for the parameter `words`; None where it holds no word."""
    words = words_of(query)
    if on_sqlite:
        return " ".join(f'"{word}"*' for word in words) or None
    return " & ".join(f"'{word}':*" for word in words) or None


def features_that_match(on_sqlite: bool, *, ranked: bool) -> Select[Any]:
    """sae_key and feature_index of every explanation that holds each word of the parameter `words`, which `query_text`
    wrote; its relevance too where `ranked`, which costs three times the finding on SQLite."""
    row = tables.ExplanationRow
    found: Any = select(row.sae_key, row.feature_index)
    if ranked:
        return _matching_rows(found.add_columns(_relevance(on_sqlite).label("relevance")), on_sqlite)
    return _matching_rows(found, on_sqlite, _UNRANKED)


def matches_in_order(*, after: bool) -> Select[Any]:
    """sae_key, feature_index and value, the same index, of features of the SAE `sae_key` that match `words`, on SQLite.

    They come by ascending index, where `after` from behind `last_index` on, straight out of the index: whoever takes
    the first few does not pay for the rest. Explanations may be filtered further.
    """
    row, place = tables.ExplanationRow, _FTS.c.rowid
    found: Any = select(row.sae_key, row.feature_index, row.feature_index.label("value")).distinct()
    found = found.select_from(_FTS).join(row, row.explanation_key == place.bitwise_and(_KEY_MASK))
    found = found.where(_MATCHES, row.sae_key + 0 == bindparam("sae_key"))  # the sum as above
    if after:
        following = bindparam("last_index", type_=Integer) + 1
        found = found.where(place >= following.bitwise_lshift(_KEY_BITS))
    return found.order_by(place)  # type: ignore[no-any-return]


def _matching_rows(columns: Select[Any], on_sqlite: bool, hits: CTE | None = None) -> Select[Any]:
    row = tables.ExplanationRow
    if on_sqlite:
        hits = _HITS if hits is None else hits
        return columns.select_from(hits).join(row, row.explanation_key == hits.c.explanation_key)
    return columns.select_from(row).where(_VECTOR.bool_op("@@")(_POSTGRESQL_QUERY))


def _relevance(on_sqlite: bool) -> ColumnElement[float]:
    # FTS5 counts better matches further below zero
    return -_HITS.c.rank if on_sqlite else cast(func.ts_rank(_VECTOR, _POSTGRESQL_QUERY), Double)


_WORDS = bindparam("words", type_=Text)
_FTS = table("explanation_fts", column("rowid", Integer), column("explanation_fts", Text), column("rank", Double))
_MATCHES = _FTS.c.explanation_fts.bool_op("MATCH")(_WORDS)
_KEY_MASK = (1 << _KEY_BITS) - 1
_KEY = _FTS.c.rowid.bitwise_and(_KEY_MASK).label("explanation_key")
# materialized: SQLite would rather walk along every explanation and ask the index for each, a hundred times as slow
_UNRANKED, _HITS = (
    select(*columns).where(_MATCHES).cte("hit").prefix_with("MATERIALIZED")
    for columns in ((_KEY,), (_KEY, _FTS.c.rank))
)
_VECTOR: ColumnElement[str] = literal_column("explanation.explanation_vector")
_POSTGRESQL_QUERY = func.to_tsquery(literal_column("'simple'::regconfig"), _WORDS)
