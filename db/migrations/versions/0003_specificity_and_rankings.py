"""What SAEs tell apart of each concept, and how one run ranked them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sae_specificity",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("concept", TEXT, nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["concept"], ["concept.name"], name=op.f("fk_sae_specificity_concept_concept")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_sae_specificity_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_sae_specificity_sae_key_sae")),
        sa.PrimaryKeyConstraint("sae_key", "concept", name=op.f("pk_sae_specificity")),
    )
    op.create_table(
        "sae_ranking",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_sae_ranking_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_sae_ranking_sae_key_sae")),
        sa.PrimaryKeyConstraint("run_id", "sae_key", name=op.f("pk_sae_ranking")),
    )
