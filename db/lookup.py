"""Finding the row of an SAE or a feature by the names that people use, or saying what is wrong with the name."""

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from db.packing import is_plain_text
from safe_sail.errors import BadInput, NotFound
from safe_sail.records import FeatureId

MAX_PAGE = 1000
"""Rows that one query answers at most."""


def require_limit(limit: int) -> None:
    """Refuses a number of rows that no query answers.

    Raises:
        BadInput: the limit is outside 1 to MAX_PAGE.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"a page has 1 to {MAX_PAGE} rows; got limit {limit}.")


def find_sae(session: Session, slug: str) -> tables.SaeRow:
    """Row of an SAE.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = None
    if is_plain_text(slug):
        row = session.scalars(select(tables.SaeRow).where(tables.SaeRow.slug == slug)).one_or_none()
    if row is None:
        raise NotFound(f"no SAE is called `{slug}`; `list_saes` names those in the database.")
    return row


def find_feature(session: Session, feature: FeatureId) -> tables.SaeRow:
    """Row of the feature's SAE.

    Raises:
        NotFound: no SAE has this slug, or the index is beyond its width.
    """
    row = find_sae(session, feature.sae)
    if feature.index >= row.width:
        raise NotFound(f"{feature.sae} has no feature {feature.index}; its features are 0 to {row.width - 1}.")
    return row


def require_concept(session: Session, name: str) -> None:
    """Refuses a concept that is not kept.

    Raises:
        NotFound: no concept has this name.
    """
    if not is_plain_text(name) or session.get(tables.ConceptRow, name) is None:
        raise NotFound(f"no concept is called `{name}`; `list_concepts` names those in the database.")


def require_place(session: Session, level: Literal["category", "domain"], name: str) -> None:
    """Refuses a category or domain that no kept concept lies in.

    Raises:
        NotFound: no concept has this category or domain.
    """
    column = getattr(tables.ConceptRow, level)
    if not is_plain_text(name) or session.scalar(select(column).where(column == name).limit(1)) is None:
        raise NotFound(f"no {level} is called `{name}`; `list_concepts` names those in the database.")
