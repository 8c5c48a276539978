"""Links of features with heads, neurons, circuits and directions."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "link_study",
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("model_id", TEXT, nullable=False),
        sa.Column("sae_key", sa.Integer(), nullable=False),
        *[
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("n_tested", "n_linked", "n_linked_shuffled")
        ],
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_link_study_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_link_study_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_link_study_sae_key_sae")),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_link_study")),
    )
    op.create_index(op.f("ix_link_study_model_id"), "link_study", ["model_id"], unique=False)
    op.create_index(op.f("ix_link_study_sae_key"), "link_study", ["sae_key"], unique=False)
    op.create_table(
        "feature_link",
        sa.Column("study", TEXT, nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), nullable=False),
        *[sa.Column(name, TEXT, nullable=False) for name in ("concept", "kind", "target", "flow")],
        sa.Column("is_linked", sa.Boolean(), nullable=False),
        sa.Column("is_direct", sa.Boolean(), nullable=False),
        sa.Column("strength", sa.Double(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_feature_link_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_feature_link_sae_key_feature_index_feature"),
        ),
        sa.ForeignKeyConstraint(
            ["study"], ["link_study.slug"], name=op.f("fk_feature_link_study_link_study"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study", "place", name=op.f("pk_feature_link")),
    )
    op.create_index(
        op.f("ix_feature_link_kind_target_strength"), "feature_link", ["kind", "target", "strength"], unique=False
    )
    op.create_index(
        op.f("ix_feature_link_sae_key_feature_index_strength"),
        "feature_link",
        ["sae_key", "feature_index", "strength"],
        unique=False,
    )
