"""Runs, models, SAEs, features, concepts, contexts, explanations, their scores, and the search index."""

import sqlalchemy as sa
from alembic import op

from db.search import create_search

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:  # in the order of their references
    _runs_concepts_models_saes()
    _features_and_facts()
    _sae_scores()
    _concept_scores()
    _contexts()
    _explanations()
    create_search(op.get_bind())


def _runs_concepts_models_saes() -> None:
    op.create_table(
        "run",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("git_commit", TEXT, nullable=True),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("device", TEXT, nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_started"), "run", ["started"], unique=False)

    op.create_table(
        "concept",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("category", TEXT, nullable=False),
        sa.Column("domain", TEXT, nullable=False),
        sa.Column("harmful", sa.Boolean(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_concept_run_id_run")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_concept")),
    )
    op.create_table(
        "model",
        sa.Column("model_id", TEXT, nullable=False),
        sa.Column("architecture", TEXT, nullable=False),
        sa.Column("n_layers", sa.BigInteger(), nullable=False),
        sa.Column("n_heads", sa.BigInteger(), nullable=False),
        sa.Column("d_head", sa.BigInteger(), nullable=False),
        sa.Column("d_model", sa.BigInteger(), nullable=False),
        sa.Column("d_mlp", sa.BigInteger(), nullable=False),
        sa.Column("d_vocab", sa.BigInteger(), nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_model_run_id_run")),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_model")),
    )
    op.create_table(
        "sae",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("release", TEXT, nullable=True),
        sa.Column("sae_id", TEXT, nullable=False),
        sa.Column("model_id", TEXT, nullable=True),
        sa.Column("site", TEXT, nullable=False),
        sa.Column("d_in", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.BigInteger(), nullable=False),
        sa.Column("architecture", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.model_id"], name=op.f("fk_sae_model_id_model")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_sae_run_id_run")),
        sa.PrimaryKeyConstraint("sae_key", name=op.f("pk_sae")),
        sa.UniqueConstraint("slug", name=op.f("uq_sae_slug")),
    )
    op.create_index(op.f("ix_sae_model_id"), "sae", ["model_id"], unique=False)


def _features_and_facts() -> None:
    op.create_table(
        "feature",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n_tokens_seen", sa.BigInteger(), nullable=True),
        sa.Column("density", sa.Double(), nullable=True),
        sa.Column("max_activation", sa.Double(), nullable=True),
        sa.Column("n_contexts", sa.BigInteger(), nullable=True),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_feature_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_feature_sae_key_sae")),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", name=op.f("pk_feature")),
    )
    op.create_index(op.f("ix_feature_sae_key_density"), "feature", ["sae_key", "density"], unique=False)

    op.create_table(
        "sae_facts",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("l0", sa.Double(), nullable=False),
        sa.Column("explained_variance", sa.Double(), nullable=False),
        sa.Column("ce_recovered", sa.Double(), nullable=False),
        sa.Column("dead_share", sa.Double(), nullable=False),
        sa.Column("n_tokens", sa.BigInteger(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_sae_facts_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_sae_facts_sae_key_sae")),
        sa.PrimaryKeyConstraint("sae_key", name=op.f("pk_sae_facts")),
    )


def _sae_scores() -> None:
    op.create_table(
        "sae_score",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("concept", TEXT, nullable=False),
        sa.Column("best_feature", sa.Integer(), nullable=False),
        sa.Column("auroc", sa.Double(), nullable=False),
        sa.Column("auroc_low", sa.Double(), nullable=False),
        sa.Column("auroc_high", sa.Double(), nullable=False),
        sa.Column("auroc_n", sa.BigInteger(), nullable=False),
        sa.Column("auroc_level", sa.Double(), nullable=False),
        sa.Column("rate_gap", sa.Double(), nullable=False),
        sa.Column("rate_gap_low", sa.Double(), nullable=False),
        sa.Column("rate_gap_high", sa.Double(), nullable=False),
        sa.Column("rate_gap_n", sa.BigInteger(), nullable=False),
        sa.Column("rate_gap_level", sa.Double(), nullable=False),
        sa.Column("f1", sa.Double(), nullable=False),
        sa.Column("f1_low", sa.Double(), nullable=False),
        sa.Column("f1_high", sa.Double(), nullable=False),
        sa.Column("f1_n", sa.BigInteger(), nullable=False),
        sa.Column("f1_level", sa.Double(), nullable=False),
        sa.Column("control_rate_gap", sa.Double(), nullable=False),
        sa.Column("control_rate_gap_low", sa.Double(), nullable=False),
        sa.Column("control_rate_gap_high", sa.Double(), nullable=False),
        sa.Column("control_rate_gap_n", sa.BigInteger(), nullable=False),
        sa.Column("control_rate_gap_level", sa.Double(), nullable=False),
        sa.Column("n_specific", sa.BigInteger(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["concept"], ["concept.name"], name=op.f("fk_sae_score_concept_concept")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_sae_score_run_id_run")),
        sa.ForeignKeyConstraint(["sae_key"], ["sae.sae_key"], name=op.f("fk_sae_score_sae_key_sae")),
        sa.PrimaryKeyConstraint("sae_key", "concept", name=op.f("pk_sae_score")),
    )
    op.create_index(op.f("ix_sae_score_concept"), "sae_score", ["concept"], unique=False)


def _concept_scores() -> None:
    op.create_table(
        "concept_score",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("concept", TEXT, nullable=False),
        sa.Column("auroc", sa.Double(), nullable=False),
        sa.Column("auroc_low", sa.Double(), nullable=False),
        sa.Column("auroc_high", sa.Double(), nullable=False),
        sa.Column("auroc_n", sa.BigInteger(), nullable=False),
        sa.Column("auroc_level", sa.Double(), nullable=False),
        sa.Column("rate_positive", sa.Double(), nullable=False),
        sa.Column("rate_negative", sa.Double(), nullable=False),
        sa.Column("rate_gap", sa.Double(), nullable=False),
        sa.Column("rate_gap_low", sa.Double(), nullable=False),
        sa.Column("rate_gap_high", sa.Double(), nullable=False),
        sa.Column("rate_gap_n", sa.BigInteger(), nullable=False),
        sa.Column("rate_gap_level", sa.Double(), nullable=False),
        sa.Column("n_positive", sa.BigInteger(), nullable=False),
        sa.Column("n_negative", sa.BigInteger(), nullable=False),
        sa.Column("q_value", sa.Double(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["concept"], ["concept.name"], name=op.f("fk_concept_score_concept_concept")),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_concept_score_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_concept_score_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", "concept", name=op.f("pk_concept_score")),
    )
    op.create_index(
        op.f("ix_concept_score_sae_key_concept_rate_gap"),
        "concept_score",
        ["sae_key", "concept", "rate_gap"],
        unique=False,
    )
    op.create_index(
        op.f("ix_concept_score_sae_key_feature_index_rate_gap"),
        "concept_score",
        ["sae_key", "feature_index", "rate_gap"],
        unique=False,
    )


def _contexts() -> None:
    op.create_table(
        "contexts",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lengths", sa.LargeBinary(), nullable=False),
        sa.Column("peaks", sa.LargeBinary(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("activations", sa.LargeBinary(), nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column("source_ids", sa.LargeBinary(), nullable=False),
        sa.Column("histogram_edges", sa.LargeBinary(), nullable=True),
        sa.Column("histogram_counts", sa.LargeBinary(), nullable=True),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_contexts_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_contexts_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint("sae_key", "feature_index", name=op.f("pk_contexts")),
    )


def _explanations() -> None:
    op.create_table(
        "explanation",
        sa.Column("explanation_key", sa.Integer(), nullable=False),
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), nullable=False),
        sa.Column("explainer", TEXT, nullable=False),
        sa.Column("prompt_version", TEXT, nullable=False),
        sa.Column("text", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_explanation_run_id_run")),
        sa.ForeignKeyConstraint(
            ["sae_key", "feature_index"],
            ["feature.sae_key", "feature.feature_index"],
            name=op.f("fk_explanation_sae_key_feature_index_feature"),
        ),
        sa.PrimaryKeyConstraint("explanation_key", name=op.f("pk_explanation")),
        sa.UniqueConstraint(
            "sae_key",
            "feature_index",
            "explainer",
            "prompt_version",
            name=op.f("uq_explanation_sae_key_feature_index_explainer_prompt_version"),
        ),
    )
    op.create_table(
        "explanation_score",
        sa.Column("explanation_key", sa.Integer(), nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("score_low", sa.Double(), nullable=False),
        sa.Column("score_high", sa.Double(), nullable=False),
        sa.Column("score_n", sa.BigInteger(), nullable=False),
        sa.Column("score_level", sa.Double(), nullable=False),
        sa.Column("control", sa.Double(), nullable=False),
        sa.Column("control_low", sa.Double(), nullable=False),
        sa.Column("control_high", sa.Double(), nullable=False),
        sa.Column("control_n", sa.BigInteger(), nullable=False),
        sa.Column("control_level", sa.Double(), nullable=False),
        sa.Column("n_excluded", sa.BigInteger(), nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["explanation_key"],
            ["explanation.explanation_key"],
            name=op.f("fk_explanation_score_explanation_key_explanation"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name=op.f("fk_explanation_score_run_id_run")),
        sa.PrimaryKeyConstraint("explanation_key", "method", name=op.f("pk_explanation_score")),
    )
