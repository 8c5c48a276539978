"""Safety neurons: searches, comparisons of two aims, guards."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    for name, models, parts in (
        ("neuron_search", ("first_model", "second_model"), ("record", "change")),
        ("neuron_tax", ("base_model",), ("record",)),
        ("guard", ("model_id",), ("record",)),
    ):
        op.create_table(
            name,
            sa.Column("slug", TEXT, nullable=False),
            *[sa.Column(model, TEXT, nullable=False) for model in models],
            *[sa.Column(part, sa.LargeBinary(), nullable=False) for part in parts],
            sa.Column("run_id", TEXT, nullable=False),
            *[
                sa.ForeignKeyConstraint([model], ["model.model_id"], name=op.f(f"fk_{name}_{model}_model"))
                for model in models
            ],
            sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f(f"fk_{name}_run_id_run")),
            sa.PrimaryKeyConstraint("slug", name=op.f(f"pk_{name}")),
        )
        for model in models:
            op.create_index(op.f(f"ix_{name}_{model}"), name, [model], unique=False)
