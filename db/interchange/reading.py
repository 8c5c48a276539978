"""An SAE's features from the store, in order of index and page by page, so that memory does not grow with the SAE."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae
from db.store import rows
from db.store.loading import Kept
from db.store.samples import sample_of
from db.tables import FeatureTagRow, PublishedScoreRow
from safe_sail.errors import ExportRefused
from safe_sail.records import ContextSample, Explanation, ExplanationScore, TopContexts

PAGE = 512
"""Features of one page: 20 contexts of 32 tokens each make some megabytes."""


def pages(session: Session, sae: str) -> Iterator[tuple[int, list[int]]]:
    """The SAE's number and the indices of each page's features, ascending.

    Raises:
        NotFound: no SAE has this slug.
    """
    sae_key = find_sae(session, sae).sae_key
    row = tables.FeatureRow
    query = select(row.feature_index).where(row.sae_key == sae_key).order_by(row.feature_index).limit(PAGE)
    page = list(session.scalars(query))
    while page:
        yield sae_key, page
        session.expunge_all()  # rows that were read are not kept for a later page
        page = list(session.scalars(query.where(row.feature_index > page[-1])))


def top_contexts(session: Session, sae: str, sae_key: int, page: list[int]) -> list[Kept[TopContexts]]:
    """What the page's features fire on, by index; without those whose contexts were not collected."""
    light, heavy = tables.FeatureRow, tables.ContextsRow
    query = (
        select(light, heavy)
        .join(heavy, (heavy.sae_key == light.sae_key) & (heavy.feature_index == light.feature_index))
        .where(light.sae_key == sae_key, light.feature_index.in_(page))
        .order_by(light.feature_index)
    )
    return [Kept(rows.top_contexts_of(one, two, sae), two.run_id) for one, two in session.execute(query)]


def context_samples(session: Session, sae: str, sae_key: int, page: list[int]) -> list[ContextSample]:
    """Samples of the page's features, by index."""
    row = tables.ContextSampleRow
    query = select(row).where(row.sae_key == sae_key, row.feature_index.in_(page)).order_by(row.feature_index)
    return [sample_of(one, sae) for one in session.scalars(query)]


def explanations(session: Session, sae: str, sae_key: int, page: list[int]) -> list[Kept[Explanation]]:
    """The page's explanations, by index, explainer and version."""
    row = tables.ExplanationRow
    query = (
        select(row)
        .where(row.sae_key == sae_key, row.feature_index.in_(page))
        .order_by(row.feature_index, row.explainer, row.prompt_version)
    )
    return [Kept(rows.explanation_of(one, sae), one.run_id) for one in session.scalars(query)]


def explanation_scores(session: Session, sae: str, sae_key: int, page: list[int]) -> list[Kept[ExplanationScore]]:
    """How the page's explanations were judged, in their order, then by method."""
    row, score = tables.ExplanationRow, tables.ExplanationScoreRow
    query = (
        select(row, score)
        .join(score, score.explanation_key == row.explanation_key)
        .where(row.sae_key == sae_key, row.feature_index.in_(page))
        .order_by(row.feature_index, row.explainer, row.prompt_version, score.method)
    )
    return [
        Kept(rows.explanation_score_of(judged, rows.explanation_of(one, sae)), judged.run_id)
        for one, judged in session.execute(query)
    ]


def published_scores(session: Session, sae_key: int, page: list[int]) -> list[PublishedScoreRow]:
    """Published scores of the page, by index, source and method."""
    row = PublishedScoreRow
    query = select(row).where(row.sae_key == sae_key, row.feature_index.in_(page))
    return list(session.scalars(query.order_by(row.feature_index, row.source, row.method)))


def tags(session: Session, sae_key: int, page: list[int]) -> list[FeatureTagRow]:
    """Tags of the page, by index, source and place."""
    row = FeatureTagRow
    query = select(row).where(row.sae_key == sae_key, row.feature_index.in_(page))
    return list(session.scalars(query.order_by(row.feature_index, row.source, row.place)))


# --------------------------------------------------------------------------------------------- one explainer's texts

_OURS = ("token_simulation", "segment_simulation")  # which of our own scores stands for an explanation: the first


@dataclass(slots=True)
class FeatureText:
    """One explainer's word on one feature."""

    index: int
    text: str | None = None
    tags: list[str] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)
    judged: dict[str, float] = field(default_factory=dict)

    def score(self, method: str) -> float | None:
        """The published score of this name, else our judges' score of tokens or, failing that, of segments."""
        known = self.published | self.judged
        return next((known[name] for name in (method, *_OURS) if name in known), None)


def feature_texts(
    session: Session, sae: str, *, explainer: str, prompt_version: str | None = None
) -> Iterator[FeatureText]:
    """Features that the explainer explained or gave a published score, by index; with tags of that source.

    Raises:
        NotFound: no SAE has this slug.
        ExportRefused: a feature has explanations of several prompt versions and none was chosen.
    """
    for sae_key, page in pages(session, sae):
        found: dict[int, FeatureText] = {}
        for score in published_scores(session, sae_key, page):
            if score.source == explainer:
                one = found.setdefault(score.feature_index, FeatureText(score.feature_index))
                one.published[score.method] = score.value
        for kept in explanations(session, sae, sae_key, page):
            said = kept.record
            if said.explainer == explainer and prompt_version in (None, said.prompt_version):
                one = found.setdefault(said.feature.index, FeatureText(said.feature.index))
                if one.text is not None:
                    raise ExportRefused(
                        f"{said.feature} has explanations by `{explainer}` of several prompt versions; choose one."
                    )
                one.text = said.text
        for judged in explanation_scores(session, sae, sae_key, page):
            by = judged.record
            if by.explainer == explainer and prompt_version in (None, by.prompt_version):
                found[by.feature.index].judged[str(by.method)] = by.score.value
        for tag in tags(session, sae_key, page):
            if tag.source == explainer and tag.feature_index in found:
                found[tag.feature_index].tags.append(tag.tag)
        yield from (found[index] for index in sorted(found))
