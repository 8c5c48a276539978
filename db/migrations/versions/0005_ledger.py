"""What asking language models cost, and how it ended."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
KEY = ("sae_key", "feature_index", "stage", "explainer", "prompt_version", "method", "run_id")


def upgrade() -> None:
    counts = ("attempts", "prompt_tokens", "completion_tokens", "assumed_tokens")
    op.create_table(
        "ledger",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        *[sa.Column(name, TEXT, nullable=False) for name in KEY[2:]],
        sa.Column("model", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=True),
        sa.Column("texts", sa.LargeBinary(), nullable=False),
        *[sa.Column(name, sa.BigInteger(), nullable=False) for name in counts],
        sa.Column("cost", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_ledger_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_ledger_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint(*KEY, name=op.f("pk_ledger")),
    )
