"""Safety circuits."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "circuit",
        *[sa.Column(name, TEXT, nullable=False) for name in ("slug", "model_id", "behaviour", "method", "ablation")],
        *[sa.Column(name, sa.BigInteger(), nullable=False) for name in ("n_heads", "n_neurons", "n_features")],
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_circuit_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_circuit_run_id_run")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_circuit")),
    )
    op.create_index(op.f("ix_circuit_model_id"), "circuit", ["model_id"], unique=False)
    op.create_table(
        "circuit_member",
        sa.Column("circuit", TEXT, nullable=False),
        sa.Column("unit", TEXT, nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["circuit"], ["circuit.slug"], name=op.f("fk_circuit_member_circuit_circuit"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("circuit", "unit", name=op.f("pk_circuit_member")),
    )
    op.create_index(op.f("ix_circuit_member_unit"), "circuit_member", ["unit"], unique=False)
    op.create_table(
        "circuit_search",
        *[sa.Column(name, TEXT, nullable=False) for name in ("slug", "model_id", "objective", "circuit")],
        sa.Column("alone", TEXT, nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_circuit_search_model_id_model")),
        sa.ForeignKeyConstraint(["circuit"], ["circuit.slug"], name=op.f("fk_circuit_search_circuit_circuit")),
        sa.ForeignKeyConstraint(["alone"], ["circuit.slug"], name=op.f("fk_circuit_search_alone_circuit")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_circuit_search_run_id_run")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_circuit_search")),
    )
    op.create_index(op.f("ix_circuit_search_model_id"), "circuit_search", ["model_id"], unique=False)
    op.create_table(
        "circuit_evaluation",
        *[sa.Column(name, TEXT, nullable=False) for name in ("circuit", "ablation")],
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["circuit"], ["circuit.slug"], name=op.f("fk_circuit_evaluation_circuit_circuit"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_circuit_evaluation_run_id_run")),
        sa.PrimaryKeyConstraint("circuit", "ablation", name=op.f("pk_circuit_evaluation")),
    )
