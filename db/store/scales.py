"""What activations are divided by so that features can be compared: stored maxima and quantiles of whole SAEs."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from safe_sail.records import FeatureScale


def load_scales(session: Session, sae: str, scale: FeatureScale) -> dict[int, float]:
    """Feature to its scale, where one is stored that is more than 0; empty for an SAE that is not in the database."""
    if scale is FeatureScale.MAXIMUM:
        kept, value = tables.FeatureRow, tables.FeatureRow.max_activation
        query = select(kept.feature_index, value).join(tables.SaeRow, tables.SaeRow.sae_key == kept.sae_key)
    else:
        sample = tables.ContextSampleRow
        value = sample.quantile_999
        query = select(sample.feature_index, value).join(tables.SaeRow, tables.SaeRow.sae_key == sample.sae_key)
    found = session.execute(query.where(tables.SaeRow.slug == sae, value > 0))
    return {index: largest for index, largest in found if largest is not None}
