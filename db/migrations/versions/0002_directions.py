"""Refusal directions, the searches that found them, and their evaluations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:  # in the order of their references
    op.create_table(
        "direction",
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("model_id", TEXT, nullable=False),
        sa.Column("site", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("estimator", TEXT, nullable=False),
        sa.Column("vectors", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_direction_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_direction_run_id_run")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_direction")),
    )
    op.create_index(op.f("ix_direction_model_id"), "direction", ["model_id"], unique=False)
    op.create_table(
        "direction_search",
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("model_id", TEXT, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("direction", TEXT, nullable=True),
        sa.Column("added", TEXT, nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["added"], ["direction.slug"], name=op.f("fk_direction_search_added_direction")),
        sa.ForeignKeyConstraint(
            ["direction"], ["direction.slug"], name=op.f("fk_direction_search_direction_direction")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_direction_search_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_direction_search_run_id_run")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_direction_search")),
    )
    op.create_index(op.f("ix_direction_search_model_id"), "direction_search", ["model_id"], unique=False)
    for name in ("direction_evaluation", "direction_reading"):
        op.create_table(
            name,
            sa.Column("direction", TEXT, nullable=False),
            sa.Column("record", sa.LargeBinary(), nullable=False),
            sa.Column("run_id", TEXT, nullable=False),
            sa.ForeignKeyConstraint(
                ["direction"],
                ["direction.slug"],
                name=op.f(f"fk_{name}_direction_direction"),
                ondelete="CASCADE",
            ),
            sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f(f"fk_{name}_run_id_run")),
            sa.PrimaryKeyConstraint("direction", name=op.f(f"pk_{name}")),
        )
