"""A feature's contexts are one list of JSON, which the service passes on as it is."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from db.packing import pack_contexts, unpack_array, unpack_texts
from safe_sail.records import Context

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ARRAYS = ("lengths", "peaks", "token_ids", "activations")
TEXTS = ("tokens", "source_ids")
KEPT = ("sae_key", "feature_index", "histogram_edges", "histogram_counts", "run_id")
AT_ONCE = 256


def upgrade() -> None:
    connection = op.get_bind()
    op.rename_table("contexts", "packed_contexts")
    if connection.dialect.name == "postgresql":  # where names of indexes are the schema's
        op.execute("ALTER INDEX pk_contexts RENAME TO pk_packed_contexts")
    new = op.create_table(
        "contexts",
        sa.Column("sae_key", sa.Integer(), nullable=False),
        sa.Column("feature_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("contexts", sa.LargeBinary(), nullable=False),
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
    old = sa.table("packed_contexts", *(sa.column(name) for name in (*KEPT, *ARRAYS, *TEXTS)))
    key = sa.tuple_(old.c.sae_key, old.c.feature_index)
    portion = sa.select(old).order_by(old.c.sae_key, old.c.feature_index).limit(AT_ONCE)
    last: tuple[int, int] | None = None
    while rows := connection.execute(portion if last is None else portion.where(key > last)).all():
        connection.execute(new.insert(), [_converted(row) for row in rows])
        last = rows[-1].sae_key, rows[-1].feature_index
        # what has been copied goes at once, so that a SQLite file does not become twice as large
        connection.execute(sa.delete(old).where(key <= last))
    op.drop_table("packed_contexts")


def _converted(row: Any) -> dict[str, Any]:
    lengths, peaks, token_ids, activations = (unpack_array(bytes(getattr(row, name))).tolist() for name in ARRAYS)
    tokens, source_ids = (unpack_texts(bytes(getattr(row, name))) for name in TEXTS)
    contexts, start = [], 0
    for length, peak, source_id in zip(lengths, peaks, source_ids, strict=True):
        part = slice(start, start + length)
        start += length
        contexts.append(
            Context(
                tokens=tuple(tokens[part]),
                token_ids=tuple(token_ids[part]),
                activations=tuple(activations[part]),
                peak=peak,
                source_id=source_id,
            )
        )
    return {name: getattr(row, name) for name in KEPT} | {"contexts": pack_contexts(contexts)}
