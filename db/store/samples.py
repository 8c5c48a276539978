"""What features do on texts that their largest activations did not choose, in the store."""

from collections.abc import Iterable
from typing import Final

from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_feature
from db.packing import to_array
from db.store import rows
from db.store.loading import Kept
from db.store.saving import FeatureWriter, chunks, require_run
from db.store.upserts import upsert
from safe_sail.records import ContextSample, FeatureId

GROUPS: Final = ("spread", "random", "near_misses")
"""Fields of the record; a context's kind is its field's place here."""


def save_context_samples(session: Session, found: Iterable[ContextSample], *, run_id: str) -> None:
    """Keeps samples, after the top contexts of the same collection: saving top contexts deletes an older sample.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a token id beyond 32 bits.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(found):
        writer.touch([one.feature for one in chunk])
        columns = [sample_columns(one) | writer.key_of(one.feature) for one in chunk]
        upsert(session, tables.ContextSampleRow, columns, key=("sae_key", "feature_index"))


def load_context_sample(session: Session, feature: FeatureId) -> Kept[ContextSample] | None:
    """What a feature does on texts that it did not choose; None where no sample was kept.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    sae = find_feature(session, feature)
    row = session.get(tables.ContextSampleRow, (sae.sae_key, feature.index))
    return None if row is None else Kept(sample_of(row, feature.sae), row.run_id)


def sample_columns(sample: ContextSample) -> rows.Columns:
    """Columns of `context_sample`, without the feature and the run; activations as float32."""
    kinds = [kind for kind, name in enumerate(GROUPS) for _ in getattr(sample, name)]
    contexts = [context for name in GROUPS for context in getattr(sample, name)]
    return rows.packed_contexts(contexts) | {
        "kinds": to_array(kinds, "<i4"),
        "quantile_999": sample.quantile_999,
    }


def sample_of(row: tables.ContextSampleRow, sae: str) -> ContextSample:
    """Record of a row of `context_sample`."""
    contexts = rows.unpacked_contexts(row)
    kinds = row.kinds.tolist()
    groups = [
        tuple(context for context, kind in zip(contexts, kinds, strict=True) if kind == place)
        for place in range(len(GROUPS))
    ]
    return ContextSample(
        feature=FeatureId(sae=sae, index=row.feature_index),
        spread=groups[0],
        random=groups[1],
        near_misses=groups[2],
        quantile_999=row.quantile_999,
    )
