"""What others published about features, in the store: scores without n, and tags; both by source.

Rule of keys as in `saving`: the same key again replaces what was there. The tags that a source gives a feature are
replaced whole.
"""

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import ColumnElement, and_, delete, false, func, or_, select, tuple_
from sqlalchemy.orm import Session

from db.lookup import find_feature, find_sae
from db.store.loading import Kept
from db.store.saving import FeatureWriter, chunks, require_run
from db.store.upserts import upsert
from db.tables import FeatureTagRow, PublishedScoreRow
from safe_sail.records import FeatureId, FeatureTags, PublishedScore


def save_published_scores(session: Session, scores: Iterable[PublishedScore], *, run_id: str) -> None:
    """Keeps scores that others published; takes thousands, also from a generator.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a name cannot be kept.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    key = ("sae_key", "feature_index", "source", "method")
    for chunk in chunks(scores):
        writer.touch([score.feature for score in chunk])
        columns = [
            {"source": one.source, "method": one.method, "value": one.value} | writer.key_of(one.feature)
            for one in chunk
        ]
        upsert(session, PublishedScoreRow, columns, key=key)


def load_published_scores(session: Session, feature: FeatureId) -> list[Kept[PublishedScore]]:
    """Published scores of a feature, by source and method; empty where there are none.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    row = PublishedScoreRow
    sae_key = find_feature(session, feature).sae_key
    query = select(row).where(row.sae_key == sae_key, row.feature_index == feature.index)
    return [
        Kept(PublishedScore(feature=feature, method=one.method, value=one.value, source=one.source), one.run_id)
        for one in session.scalars(query.order_by(row.source, row.method))
    ]


def save_feature_tags(session: Session, tagged: Iterable[FeatureTags], *, run_id: str) -> None:
    """Keeps the tags that sources give features; a source's former tags of a feature go.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a tag cannot be kept.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    row = FeatureTagRow
    for chunk in chunks(tagged):
        last = {(one.feature, one.source): one for one in chunk}.values()
        writer.touch([one.feature for one in last])
        owners = [(writer.key_of(one.feature)["sae_key"], one.feature.index, one.source) for one in last]
        session.execute(delete(row).where(tuple_(row.sae_key, row.feature_index, row.source).in_(owners)))
        columns = [
            {"source": one.source, "tag": tag, "place": place} | writer.key_of(one.feature)
            for one in last
            for place, tag in enumerate(one.tags)
        ]
        upsert(session, row, columns, key=("sae_key", "feature_index", "source", "tag"))


def load_feature_tags(session: Session, feature: FeatureId) -> list[Kept[FeatureTags]]:
    """Tags of a feature, by source; empty where no source tags it.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    row = FeatureTagRow
    sae_key = find_feature(session, feature).sae_key
    query = select(row).where(row.sae_key == sae_key, row.feature_index == feature.index)
    found: dict[str, list[FeatureTagRow]] = {}
    for one in session.scalars(query.order_by(row.source, row.place)):
        found.setdefault(one.source, []).append(one)
    return [
        Kept(FeatureTags(feature=feature, tags=tuple(one.tag for one in tags), source=source), tags[0].run_id)
        for source, tags in found.items()
    ]


def load_published_of(
    session: Session, features: Sequence[FeatureId]
) -> dict[FeatureId, tuple[list[PublishedScore], list[FeatureTags]]]:
    """Published scores and tags of each of these features, as the two functions above give them; two queries in all.

    Raises:
        NotFound: an SAE is not kept.
    """
    sae_keys = {slug: find_sae(session, slug).sae_key for slug in {one.sae for one in features}}
    owners = {(sae_keys[one.sae], one.index): one for one in features}
    score, tag = PublishedScoreRow, FeatureTagRow
    scores: dict[FeatureId, list[PublishedScore]] = {}
    ordered = select(score).where(_is_among(score, owners)).order_by(score.source, score.method)
    for one in session.scalars(ordered):
        feature = owners[one.sae_key, one.feature_index]
        found = PublishedScore(feature=feature, method=one.method, value=one.value, source=one.source)
        scores.setdefault(feature, []).append(found)
    tags: dict[tuple[FeatureId, str], list[str]] = {}
    for each in session.scalars(select(tag).where(_is_among(tag, owners)).order_by(tag.source, tag.place)):
        tags.setdefault((owners[each.sae_key, each.feature_index], each.source), []).append(each.tag)
    tagged: dict[FeatureId, list[FeatureTags]] = {}
    for (feature, source), names in tags.items():
        tagged.setdefault(feature, []).append(FeatureTags(feature=feature, tags=tuple(names), source=source))
    return {one: (scores.get(one, []), tagged.get(one, [])) for one in features}


def list_tags(session: Session) -> dict[str, int]:
    """Tags that any source gives, by name, with the number of features that have each."""
    row = FeatureTagRow
    features = select(row.tag, row.sae_key, row.feature_index).distinct().subquery()
    query = select(features.c.tag, func.count()).group_by(features.c.tag).order_by(features.c.tag)
    return {one[0]: one[1] for one in session.execute(query)}


def _is_among(
    row: type[PublishedScoreRow | FeatureTagRow], owners: Mapping[tuple[int, int], FeatureId]
) -> ColumnElement[bool]:
    by_sae: dict[int, list[int]] = {}
    for sae_key, index in owners:
        by_sae.setdefault(sae_key, []).append(index)
    return or_(false(), *(and_(row.sae_key == sae, row.feature_index.in_(some)) for sae, some in by_sae.items()))
