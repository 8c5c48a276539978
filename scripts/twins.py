"""Benign twins: a concept's texts with the concept taken out, as near misses of the features that mark the concept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine

from db import store
from db.engine import reading
from safe_sail.errors import BadInput
from safe_sail.features.context_buffers import Window
from safe_sail.features.near_misses import twin_windows
from safe_sail.model.handle import HookedModel
from safe_sail.records import FeatureId
from safe_sail.settings import ContextSettings
from scripts.concept_texts import concept_splits

TwinNames = Annotated[
    list[str] | None,
    typer.Option(
        "--twins",
        help="Pairs of concepts, as --concepts of score-saes, or organism: texts without a concept try its features.",
    ),
]

_PAGE = 100
_ORGANISM_TEXTS = 32


def twins_of(
    engine: Engine,
    model: HookedModel,
    chosen: Mapping[str, Sequence[int]],
    names: Sequence[str],
    settings: ContextSettings,
    seed: int,
) -> dict[FeatureId, list[Window]]:
    """Half as many twins as near misses are kept, for each chosen feature whose best concept has pairs here.

    Raises:
        BadInput: the texts have no pairs, or no chosen feature has a score for one of their concepts.
        CorpusUnreadable: a file is missing, empty or malformed.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    files = None if list(names) == ["organism"] else [Path(name) if Path(name).exists() else name for name in names]
    splits = concept_splits(files, None, n_choose=_ORGANISM_TEXTS, n_judge=_ORGANISM_TEXTS, seed=seed)
    without = {one.judge.concept: [negative for _, negative in one.judge.pairs] for one in splits}
    lacking = sorted(concept for concept, texts in without.items() if not texts)
    if lacking:
        raise BadInput(
            f"--twins: expected pairs, a text and the same without the concept; {', '.join(lacking)} has none."
        )
    windows = {
        concept: twin_windows(model, texts, window=settings.window)[: settings.n_near // 2]
        for concept, texts in without.items()
    }
    found = {
        feature: windows[concept]
        for sae, features in chosen.items()
        for feature, concept in _best_concepts(engine, sae, set(without)).items()
        if feature.index in set(features)
    }
    if not found:
        raise BadInput(
            f"--twins: no feature of {', '.join(chosen)} has a score for {', '.join(sorted(without))} in the database; "
            f"run score-saes with these SAEs and texts first."
        )
    return found


def _best_concepts(engine: Engine, sae: str, concepts: set[str]) -> dict[FeatureId, str]:
    """The concept that each scored feature marks best, where it is one of these."""
    found: dict[FeatureId, str] = {}
    cursor = None
    with reading(engine) as session:
        known = any(one.sae.slug == sae for one in store.list_saes(session))
        while known:
            page = store.list_features(session, sae, sort=store.FeatureSort.SCORE, cursor=cursor, limit=_PAGE)
            scored = [row for row in page.rows if row.rate_gap is not None and row.rate_gap.value > 0]
            found |= {row.feature: row.concept for row in scored if row.concept in concepts}
            cursor = page.next_cursor
            if cursor is None or len(scored) < len(page.rows):  # unscored ones come last
                break
    return found
