"""Finding the row of an SAE or a feature by the names that people use, or saying what is wrong with the name."""

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
        raise no_sae(slug)
    return row


def find_feature(session: Session, feature: FeatureId) -> tables.SaeRow:
    """Row of the feature's SAE.

    Raises:
        NotFound: no SAE has this slug, or the index is beyond its width.
    """
    row = find_sae(session, feature.sae)
    if feature.index >= row.width:
        raise no_feature(feature, row.width)
    return row


def require_concept(session: Session, name: str) -> None:
    """Refuses a concept that is not kept.

    Raises:
        NotFound: no concept has this name.
    """
    if not is_plain_text(name) or session.get(tables.ConceptRow, name) is None:
        raise no_concept(name)


def no_sae(slug: str) -> NotFound:
    """What to say where no SAE has this slug."""
    return NotFound(f"no SAE is called `{slug}`; `list_saes` names those in the database.")


def no_feature(feature: FeatureId, width: int) -> NotFound:
    """What to say where an index is beyond its SAE's width."""
    return NotFound(f"{feature.sae} has no feature {feature.index}; its features are 0 to {width - 1}.")


def no_concept(name: str) -> NotFound:
    """What to say where no concept has this name."""
    return NotFound(f"no concept is called `{name}`; `list_concepts` names those in the database.")


def no_place(level: str, name: str) -> NotFound:
    """What to say where no concept lies in this category or domain."""
    return NotFound(f"no {level} is called `{name}`; `list_concepts` names those in the database.")
