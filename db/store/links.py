"""Links of features in the store: a study is kept and replaced whole, and its links are found from either end.

Rule of keys as in `saving`: the same slug again replaces what was there, every link of the former study included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Select, delete, or_, select, tuple_
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_feature, find_sae, require_limit
from db.packing import is_plain_text
from db.store import rows
from db.store.cursors import LinkPlace
from db.store.loading import Kept
from db.store.saving import FeatureWriter, chunks
from db.store.slugs import Named, require_subjects, row_named
from db.store.upserts import upsert
from db.store.whole import from_json, to_json
from safe_sail.errors import BadRecord
from safe_sail.records import FeatureId, FeatureLink, LinkFlow, LinkKind, LinkStudy

_STUDIES = Named(tables.LinkStudyRow, "study of links", "list_link_studies")
_Query = Select[list[str], str, int, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkStudyListing:
    """One study, without its links."""

    slug: str
    model_id: str
    sae: str
    n_tested: int
    n_linked: int
    n_linked_shuffled: int
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptLink:
    """One link, and where it comes from."""

    link: FeatureLink
    study: str
    place: int
    """Among the links of the study, counted from 0."""
    model_id: str
    run_id: str


def save_link_study(session: Session, study: LinkStudy, *, run_id: str) -> None:
    """Keeps a study with all its links; its model and SAE must be kept before.

    Raises:
        NotFound: the run, the model or the SAE is not kept.
        BadRecord: a link is of another SAE or beyond its width, or a name cannot be kept.
    """
    require_subjects(session, run_id, study.slug, study.model_id)
    strangers = sorted({link.feature.sae for link in study.links} - {study.sae})
    if strangers:
        raise BadRecord(f"{study.slug} is of SAE {study.sae} and holds links of {', '.join(strangers)}.")
    head: rows.Columns = {
        "slug": study.slug,
        "model_id": study.model_id,
        "sae_key": find_sae(session, study.sae).sae_key,
        "n_tested": study.n_tested,
        "n_linked": study.n_linked,
        "n_linked_shuffled": study.n_linked_shuffled,
        "record": [to_json(replace(study, links=()))],
        "run_id": run_id,
    }
    session.execute(delete(tables.FeatureLinkRow).where(tables.FeatureLinkRow.study == study.slug))
    upsert(session, tables.LinkStudyRow, [head], key=("slug",))
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(enumerate(study.links)):
        writer.touch([link.feature for _, link in chunk])
        columns = [
            _columns(link) | writer.key_of(link.feature) | {"study": study.slug, "place": n} for n, link in chunk
        ]
        upsert(session, tables.FeatureLinkRow, columns, key=("study", "place"))


def load_link_study(session: Session, slug: str) -> Kept[LinkStudy]:
    """One study with all its links.

    Raises:
        NotFound: no study has this slug.
    """
    row = row_named(session, _STUDIES, slug)
    link = tables.FeatureLinkRow
    found = session.scalars(select(link.record).where(link.study == slug).order_by(link.place))
    links = tuple(from_json(FeatureLink, record[0]) for record in found)
    return Kept(replace(from_json(LinkStudy, row.record[0]), links=links), row.run_id)


def list_link_studies(
    session: Session, *, model_id: str | None = None, sae: str | None = None, limit: int = 100, after: str | None = None
) -> list[LinkStudyListing]:
    """Studies by slug, of one model or SAE or of all; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
        NotFound: no SAE has this slug.
    """
    require_limit(limit)
    study, owner = tables.LinkStudyRow, tables.SaeRow
    query = select(study, owner.slug).join(owner, owner.sae_key == study.sae_key).order_by(study.slug).limit(limit)
    if after is not None:
        query = query.where(study.slug > after)
    if model_id is not None:
        query = query.where(study.model_id == model_id)
    if sae is not None:
        query = query.where(study.sae_key == find_sae(session, sae).sae_key)
    return [
        LinkStudyListing(
            slug=row.slug, model_id=row.model_id, sae=slug, n_tested=row.n_tested, n_linked=row.n_linked,
            n_linked_shuffled=row.n_linked_shuffled, run_id=row.run_id,
        )
        for row, slug in session.execute(query)
    ]  # fmt: skip


def links_of_feature(
    session: Session,
    feature: FeatureId,
    *,
    kinds: Sequence[LinkKind] | None = None,
    linked_only: bool = True,
    limit: int = 100,
    after: LinkPlace | None = None,
) -> list[KeptLink]:
    """Links of one feature in every study, strongest first (ties: study, place); its circuits with `kinds`.

    Where `after` is given, those behind that place.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    row = tables.FeatureLinkRow
    query = _query().where(row.sae_key == find_feature(session, feature).sae_key, row.feature_index == feature.index)
    return _found(session, _filtered(query, kinds, linked_only, None), limit, after)


def links_of_target(
    session: Session,
    kind: LinkKind,
    target: str,
    *,
    model_id: str,
    concept: str | None = None,
    flow: LinkFlow | None = None,
    linked_only: bool = True,
    limit: int = 100,
    after: LinkPlace | None = None,
) -> list[KeptLink]:
    """Features linked with one circuit, neuron set, head, neuron or direction of a model, in the same order.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    if not all(is_plain_text(text) for text in (target, model_id, concept or "")):
        return []
    row = tables.FeatureLinkRow
    query = _query().where(row.target == target, tables.LinkStudyRow.model_id == model_id)
    if concept is not None:
        query = query.where(row.concept == concept)
    return _found(session, _filtered(query, [kind], linked_only, flow), limit, after)


def _query() -> _Query:
    row, study = tables.FeatureLinkRow, tables.LinkStudyRow
    return select(row.record, row.study, row.place, study.model_id, row.run_id).join(study, study.slug == row.study)


def _filtered(query: _Query, kinds: Sequence[LinkKind] | None, linked_only: bool, flow: LinkFlow | None) -> _Query:
    row = tables.FeatureLinkRow
    if kinds is not None:
        query = query.where(row.kind.in_([str(kind) for kind in kinds]))
    if linked_only:
        query = query.where(row.is_linked)
    return query if flow is None else query.where(row.flow == str(flow))


def _found(session: Session, query: _Query, limit: int, after: LinkPlace | None) -> list[KeptLink]:
    row = tables.FeatureLinkRow
    if after is not None:
        later = tuple_(row.study, row.place) > (after.study, after.place)
        # the first condition bounds the walk along an index, which a database does not see in the second
        query = query.where(row.strength <= after.strength, or_(row.strength < after.strength, later))
    ordered = query.order_by(row.strength.desc(), row.study, row.place).limit(limit)
    return [
        KeptLink(link=from_json(FeatureLink, record[0]), study=study, place=place, model_id=model_id, run_id=run_id)
        for record, study, place, model_id, run_id in session.execute(ordered)
    ]


def _columns(link: FeatureLink) -> rows.Columns:
    return {
        "concept": link.concept,
        "kind": str(link.kind),
        "target": link.target,
        "flow": str(link.flow),
        "is_linked": link.is_linked,
        "is_direct": link.is_direct,
        "strength": link.strength,
        "record": [to_json(link)],
    }
