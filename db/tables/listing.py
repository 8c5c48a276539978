"""The table that lists of features are read from."""

from sqlalchemy import ForeignKeyConstraint, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class FeatureListingRow(Base):
    """What a list shows of a feature: of its contexts, its best concept score and its best explanation.

    Every row of `feature` has one. It repeats what the other tables hold, and `db.store.feature_rows` keeps it equal to
    them: a page is then one walk along one table. A page by score cost five times as much where it joined the others
    (`benchmarks/bench_service.py`). Its indexes have a direction (`DESCENDING_INDEXES`), for orders by density, rate
    gap and score.
    """

    __tablename__ = "feature_listing"
    __table_args__ = (
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
        {"sqlite_with_rowid": False},
    )
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    density: Mapped[float | None]
    max_activation: Mapped[float | None]
    n_contexts: Mapped[int | None]
    concept: Mapped[str | None]
    rate_gap: Mapped[float | None]
    rate_gap_low: Mapped[float | None]
    rate_gap_high: Mapped[float | None]
    rate_gap_n: Mapped[int | None]
    rate_gap_level: Mapped[float | None]
    auroc: Mapped[float | None]
    auroc_low: Mapped[float | None]
    auroc_high: Mapped[float | None]
    auroc_n: Mapped[int | None]
    auroc_level: Mapped[float | None]
    text: Mapped[str | None]
    explainer: Mapped[str | None]
    score: Mapped[float | None]
    score_low: Mapped[float | None]
    score_high: Mapped[float | None]
    score_n: Mapped[int | None]
    score_level: Mapped[float | None]
    control: Mapped[float | None]
    control_low: Mapped[float | None]
    control_high: Mapped[float | None]
    control_n: Mapped[int | None]
    control_level: Mapped[float | None]
