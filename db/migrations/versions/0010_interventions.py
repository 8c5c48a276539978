"""What changing features does to their model."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
KEY = ("sae_key", "feature_index", "intervention", "prompts")


def upgrade() -> None:
    op.create_table(
        "intervention_score",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("intervention", TEXT, nullable=False),
        sa.Column("prompts", TEXT, nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_intervention_score_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_intervention_score_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint(*KEY, name=op.f("pk_intervention_score")),
    )
