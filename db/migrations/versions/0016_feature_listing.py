"""A table that lists of features are read from, and a search index that is walked in the order of features."""

import sqlalchemy as sa
from alembic import op

from db.search import create_search

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ESTIMATES = ("rate_gap", "auroc", "score", "control")
PARTS = {"": sa.Double, "_low": sa.Double, "_high": sa.Double, "_n": sa.BigInteger, "_level": sa.Double}
FILL = """INSERT INTO feature_listing
SELECT f.sae_key, f.feature_index, f.density, f.max_activation, f.n_contexts,
    s.concept, s.rate_gap, s.rate_gap_low, s.rate_gap_high, s.rate_gap_n, s.rate_gap_level,
    s.auroc, s.auroc_low, s.auroc_high, s.auroc_n, s.auroc_level, e.text, e.explainer,
    j.score, j.score_low, j.score_high, j.score_n, j.score_level,
    j.control, j.control_low, j.control_high, j.control_n, j.control_level
FROM feature f
LEFT JOIN (
    SELECT *, row_number() OVER (PARTITION BY sae_key, feature_index ORDER BY rate_gap DESC, concept) AS place
    FROM concept_score
) s ON s.sae_key = f.sae_key AND s.feature_index = f.feature_index AND s.place = 1
LEFT JOIN (
    SELECT told.sae_key, told.feature_index, told.explanation_key, told.text, told.explainer, judged.method,
        row_number() OVER (PARTITION BY told.sae_key, told.feature_index ORDER BY
            CASE WHEN judged.score IS NULL THEN 1 ELSE 0 END, judged.score DESC, told.explanation_key, judged.method
        ) AS place
    FROM explanation told LEFT JOIN explanation_score judged ON judged.explanation_key = told.explanation_key
) e ON e.sae_key = f.sae_key AND e.feature_index = f.feature_index AND e.place = 1
LEFT JOIN explanation_score j ON j.explanation_key = e.explanation_key AND j.method = e.method"""


def upgrade() -> None:
    def estimate(name: str) -> list[sa.Column[object]]:
        return [sa.Column(name + part, kind(), nullable=True) for part, kind in PARTS.items()]

    op.create_table(
        "feature_listing",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("density", sa.Double(), nullable=True),
        sa.Column("max_activation", sa.Double(), nullable=True),
        sa.Column("n_contexts", sa.BigInteger(), nullable=True),
        sa.Column("concept", TEXT, nullable=True),
        *estimate("rate_gap"),
        *estimate("auroc"),
        sa.Column("text", TEXT, nullable=True),
        sa.Column("explainer", TEXT, nullable=True),
        *estimate("score"),
        *estimate("control"),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_feature_listing_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", name=op.f("pk_feature_listing")),
        sqlite_with_rowid=False,
    )
    op.execute(FILL)
    for column in ("density", "rate_gap", "score"):
        order = ["sae_key", sa.text(f"{column} DESC"), "feature_index"]
        op.create_index(op.f(f"ix_feature_listing_by_{column}"), "feature_listing", order, unique=False)
    op.drop_index(op.f("ix_feature_sae_key_density"), table_name="feature")
    create_search(op.get_bind())
