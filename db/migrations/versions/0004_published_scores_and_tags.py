"""Scores and tags that others published."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table("published_score", *_feature("published_score"),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_published_score_run_id_run")),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", "source", "method", name=op.f("pk_published_score")),
    )
    op.create_table("feature_tag", *_feature("feature_tag"),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("tag", TEXT, nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_feature_tag_run_id_run")),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", "source", "tag", name=op.f("pk_feature_tag")),
    )
    op.create_index(op.f("ix_feature_tag_sae_key_tag"), "feature_tag", ["sae_key", "tag"], unique=False)


def _feature(table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f(f"fk_{table}_sae_key_feature_index_feature"),
        ),
    ]
