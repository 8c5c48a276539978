"""Indexes of rate gaps that hold all that a list of features asks for."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_concept_score_sae_key_feature_index_rate_gap"), table_name="concept_score")
    best = ["sae_key", "feature_index", sa.text("rate_gap DESC"), "concept"]
    op.create_index(op.f("ix_concept_score_best"), "concept_score", best, unique=False)
    order = ["sae_key", sa.text("rate_gap DESC"), "feature_index", "concept"]
    op.create_index(op.f("ix_concept_score_order"), "concept_score", order, unique=False)
