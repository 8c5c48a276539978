"""On SQLite a page of features by density, rate gap or score is read from its index alone."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

SHOWN = ("density", "max_activation", "n_contexts", "concept", "rate_gap", "auroc", "text", "explainer", "score")


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":  # an entry of a PostgreSQL index has room for 2,700 bytes, a text may not
        return
    for column in ("density", "rate_gap", "score"):
        name = op.f(f"ix_feature_listing_by_{column}")
        order = ["sae_key", sa.text(f"{column} DESC"), "feature_index", *(one for one in SHOWN if one != column)]
        op.drop_index(name, table_name="feature_listing")
        op.create_index(name, "feature_listing", order, unique=False)
