"""SAEs in an order that a reader asks for. There are few, so they are sorted here and not in the database."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from sqlalchemy.orm import Session

from db.lookup import find_sae
from db.store import SaeListing, list_saes
from safe_sail.records import SaeFacts, SaeScore


class SaeSort(StrEnum):
    """Order of a list of SAEs; best first, what was not measured last, ties by slug."""

    SLUG = "slug"
    """Ascending slug."""
    RATE_GAP = "rate_gap"
    """Descending rate gap of the best feature, for the concept asked for or the SAE's best concept."""
    L0 = "l0"
    """Ascending number of active features per token."""
    EXPLAINED_VARIANCE = "explained_variance"
    """Descending."""
    CE_RECOVERED = "ce_recovered"
    """Descending."""
    DEAD_SHARE = "dead_share"
    """Ascending share of dead features."""


_FACTS: dict[SaeSort, Callable[[SaeFacts], float]] = {
    SaeSort.L0: lambda facts: facts.l0,
    SaeSort.EXPLAINED_VARIANCE: lambda facts: -facts.explained_variance,
    SaeSort.CE_RECOVERED: lambda facts: -facts.ce_recovered,
    SaeSort.DEAD_SHARE: lambda facts: facts.dead_share,
}


def ranked(listings: Sequence[SaeListing], sort: SaeSort, concept: str | None = None) -> list[SaeListing]:
    """The SAEs in this order."""

    def key(listing: SaeListing) -> tuple[bool, float, str]:
        value = _rank_value(listing, sort, concept)
        return value is None, value or 0.0, listing.sae.slug

    return sorted(listings, key=key)


def find_listing(session: Session, slug: str) -> SaeListing:
    """One SAE and what is known of it.

    Raises:
        NotFound: no SAE has this slug.
    """
    find_sae(session, slug)
    return next(listing for listing in list_saes(session) if listing.sae.slug == slug)


def score_for(listing: SaeListing, concept: str | None) -> SaeScore | None:
    """The SAE's score for a concept, or for its best one; None where there is none."""
    kept = (kept.record for kept in listing.scores if concept is None or kept.record.concept == concept)
    return next(kept, None)


def _rank_value(listing: SaeListing, sort: SaeSort, concept: str | None) -> float | None:
    """Smaller is earlier; None where not measured."""
    if sort is SaeSort.SLUG:
        return 0.0
    if sort is SaeSort.RATE_GAP:
        score = score_for(listing, concept)
        return None if score is None else -score.rate_gap.value
    return None if listing.facts is None else _FACTS[sort](listing.facts.record)
