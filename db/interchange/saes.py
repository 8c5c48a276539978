"""The SAE that a file's features belong to, where the file itself says too little of it."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.store import load_sae, save_sae
from db.tables import SaeRow
from safe_sail.errors import BadInput
from safe_sail.records import SaeRef
from safe_sail.sites import Site


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenSae:
    """What the caller says of an SAE; None where the database already knows it."""

    d_in: int | None = None
    width: int | None = None
    architecture: str | None = None
    site: Site | None = None
    model_id: str | None = None
    """A model of the database, or None."""


def require_sae(session: Session, slug: str, said: GivenSae, *, sae_id: str, run_id: str) -> SaeRef:
    """The SAE of the database, or a new one made of what the caller says; nothing is guessed.

    Raises:
        BadInput: it is new and a fact is missing, or the caller contradicts the database.
        NotFound: the model is not kept.
    """
    if session.scalar(select(SaeRow.sae_key).where(SaeRow.slug == slug)) is None:
        if said.site is None or said.width is None or said.d_in is None or said.architecture is None:
            raise BadInput(
                f"SAE `{slug}` is not in the database and the file does not describe it; give its site, width, d_in "
                f"and architecture."
            )
        new = SaeRef(
            slug=slug, release=None, sae_id=sae_id, model_id=said.model_id, site=said.site, d_in=said.d_in,
            width=said.width, architecture=said.architecture,
        )  # fmt: skip
        save_sae(session, new, run_id=run_id)
        return new
    known = load_sae(session, slug)
    for name in ("site", "width", "d_in", "architecture", "model_id"):
        given = getattr(said, name)
        if given is not None and given != getattr(known, name):
            raise BadInput(
                f"SAE `{slug}` of the database has {name} {getattr(known, name)}, not {given}; give another slug, or "
                f"leave {name} out."
            )
    return known
