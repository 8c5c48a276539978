"""What features do on texts that their largest activations did not choose."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
PACKED = ("kinds", "lengths", "peaks", "token_ids", "activations", "tokens", "source_ids")


def upgrade() -> None:
    op.create_table(
        "context_sample",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("quantile_999", sa.Double(), nullable=False),
        *[sa.Column(name, sa.LargeBinary(), nullable=False) for name in PACKED],
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_context_sample_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_context_sample_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", name=op.f("pk_context_sample")),
    )
