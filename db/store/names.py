"""Names that people use, found by prepared statements: the row of an SAE, and whether a filter's scope exists."""

from typing import Any

from sqlalchemy import bindparam, select

from db import tables
from db.lookup import no_concept, no_place, no_sae
from db.packing import is_plain_text
from db.prepared import Prepared, Run
from db.store.feature_filter import FeatureFilter

_SAE = Prepared(select(*tables.SaeRow.__table__.c).where(tables.SaeRow.slug == bindparam("slug")))
_SAE_KEY = Prepared(select(tables.SaeRow.sae_key).where(tables.SaeRow.slug == bindparam("slug")))
_CONCEPT = Prepared(select(tables.ConceptRow.name).where(tables.ConceptRow.name == bindparam("name")))
_PLACES = {
    level: Prepared(select(column).where(column == bindparam("name")).limit(1))
    for level, column in (("category", tables.ConceptRow.category), ("domain", tables.ConceptRow.domain))
}


def sae_row(run: Run, slug: str) -> Any:
    """The columns of an SAE.

    Raises:
        NotFound: no SAE has this slug.
    """
    return _found(run, _SAE, slug)


def sae_key(run: Run, slug: str) -> int:
    """The key of an SAE.

    Raises:
        NotFound: no SAE has this slug.
    """
    key: int = _found(run, _SAE_KEY, slug).sae_key
    return key


def _found(run: Run, statement: Prepared, slug: str) -> Any:
    found = run.all(statement, {"slug": slug}) if is_plain_text(slug) else []
    if not found:
        raise no_sae(slug)
    return found[0]


def require_scope(run: Run, filters: FeatureFilter) -> None:
    """Refuses a filter whose concept, category or domain is not kept.

    Raises:
        NotFound: naming it.
    """
    name = filters.concept
    if name is not None and not (is_plain_text(name) and run.all(_CONCEPT, {"name": name})):
        raise no_concept(name)
    for level, statement in _PLACES.items():
        name = getattr(filters, level)
        if name is not None and not (is_plain_text(name) and run.all(statement, {"name": name})):
            raise no_place(level, name)
