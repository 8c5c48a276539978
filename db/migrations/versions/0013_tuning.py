"""Studies that tune a model with a circuit."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tuning_study",
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("model_id", TEXT, nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_tuning_study_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_tuning_study_run_id_run")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_tuning_study")),
    )
    op.create_index(op.f("ix_tuning_study_model_id"), "tuning_study", ["model_id"], unique=False)
