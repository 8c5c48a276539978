"""Features as one Parquet file that is written while it is read: a row each, with all that is known of it inside.

1. `SCHEMA` names the columns: as in `parquet.TABLES` where they say the same, with lists of structs for what a feature
   has several of.
2. `feature_row` makes a feature's row; half characters, which Parquet's texts cannot hold, show as U+FFFD.
3. `stream_parquet` writes portions as row groups into a buffer that is emptied after each, so that only one portion and
   the file's table of contents are in memory.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from db.interchange.parquet import ESTIMATE, TABLES, arrow_field, require_pyarrow
from db.store import Explained, FeatureBundle, Kept
from safe_sail.records import ConceptScore, Context, Estimate

Row = dict[str, Any]
Kinds = Mapping[str, "str | Kinds"]

# --------------------------------------------------------------------------------------------- 1. the columns

_FEATURE = TABLES["features"]
_SAE = ("release", "sae_id", "model_id", "site", "d_in", "width", "architecture")
_CONTEXT = ("tokens", "token_ids", "activations", "peak", "source_id")


def _estimate_kinds(name: str) -> dict[str, str]:
    return {f"{name}{end}": kind for end, kind in ESTIMATE.items()}


SCHEMA: Kinds = {
    "sae": "string", "index": "int64",
    **{name: TABLES["saes"][name] for name in _SAE},
    **{name: f"{_FEATURE[name]}?" for name in ("n_tokens_seen", "density", "max_activation")},
    **{name: _FEATURE[name] for name in ("histogram_edges", "histogram_counts")},
    "contexts_run_id": "string?",
    "contexts": {name: TABLES["contexts"][name] for name in _CONTEXT},
    "concept_scores": {
        "concept": "string", **_estimate_kinds("auroc"), "rate_positive": "float64", "rate_negative": "float64",
        **_estimate_kinds("rate_gap"), "n_positive": "int64", "n_negative": "int64", "q_value": "float64",
        "run_id": "string",
    },
    "explanations": {
        "text": "string", "explainer": "string", "prompt_version": "string", "run_id": "string",
        "scores": {
            "method": "string", **_estimate_kinds("score"), **_estimate_kinds("control"), "n_excluded": "int64",
            "run_id": "string",
        },
    },
}  # fmt: skip
"""Columns by name, as `parquet.TABLES` writes kinds; a mapping is a list of structs of these columns."""


def _field(pyarrow: Any, name: str, kind: "str | Kinds") -> Any:
    if isinstance(kind, str):
        return arrow_field(pyarrow, name, kind)
    inner = pyarrow.struct([_field(pyarrow, part, of_part) for part, of_part in kind.items()])
    return pyarrow.field(name, pyarrow.list_(pyarrow.field("element", inner, nullable=False)), nullable=False)


# --------------------------------------------------------------------------------------------- 2. one row


def feature_row(one: FeatureBundle) -> Row:
    """The feature's row."""
    found = None if one.top_contexts is None else one.top_contexts.record
    seen = None if found is None else found.histogram
    return {
        "sae": one.feature.sae,
        "index": one.feature.index,
        **{name: getattr(one.sae, name) for name in _SAE if name != "site"},
        "site": str(one.sae.site),
        **{name: found and getattr(found, name) for name in ("n_tokens_seen", "density", "max_activation")},
        "histogram_edges": seen and list(seen.edges),
        "histogram_counts": seen and list(seen.counts),
        "contexts_run_id": one.top_contexts and one.top_contexts.run_id,
        "contexts": [] if found is None else [_context(context) for context in found.contexts],
        "concept_scores": [_concept_score(kept) for kept in one.concept_scores],
        "explanations": [_explanation(said) for said in one.explanations],
    }


def _context(context: Context) -> Row:
    return {
        "tokens": [_shown(token) for token in context.tokens],
        "token_ids": list(context.token_ids),
        "activations": list(context.activations),
        "peak": context.peak,
        "source_id": _shown(context.source_id),
    }


def _shown(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _concept_score(kept: Kept[ConceptScore]) -> Row:
    names = ("concept", "rate_positive", "rate_negative", "n_positive", "n_negative", "q_value")
    score = kept.record
    numbers = _estimate("auroc", score.auroc) | _estimate("rate_gap", score.rate_gap)
    return {name: getattr(score, name) for name in names} | numbers | {"run_id": kept.run_id}


def _explanation(said: Explained) -> Row:
    kept = said.explanation
    return {
        **{name: getattr(kept.record, name) for name in ("text", "explainer", "prompt_version")},
        "run_id": kept.run_id,
        "scores": [
            {
                "method": str(one.record.method),
                **_estimate("score", one.record.score),
                **_estimate("control", one.record.control),
                "n_excluded": one.record.n_excluded,
                "run_id": one.run_id,
            }
            for one in said.scores
        ],
    }


def _estimate(name: str, estimate: Estimate) -> Row:
    return {f"{name}{end}": getattr(estimate, end[1:] or "value") for end in ESTIMATE}


# --------------------------------------------------------------------------------------------- 3. the stream


class _Drained(io.RawIOBase):
    """A file that forgets what was taken from it, but knows how long it has become."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._length = 0

    def writable(self) -> bool:
        """Yes: that is all it is."""
        return True

    def write(self, data: Any) -> int:
        """Keeps the bytes until they are taken."""
        part = bytes(data)
        self._waiting += part
        self._length += len(part)
        return len(part)

    def tell(self) -> int:
        """Bytes written since the beginning, which the file's table of contents refers to."""
        return self._length

    def take(self) -> bytes:
        """What was written since the last time."""
        part = bytes(self._waiting)
        self._waiting.clear()
        return part


def stream_parquet(portions: Iterable[Sequence[FeatureBundle]]) -> Iterator[bytes]:
    """The bytes of a Parquet file, a row group for each portion.

    A stream that was cut off lacks the table of contents at its end, and no reader takes it for a file.
    """
    pyarrow = require_pyarrow()
    schema = pyarrow.schema([_field(pyarrow, name, kind) for name, kind in SCHEMA.items()])
    sink = _Drained()
    writer = pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd")
    for portion in portions:
        if portion:
            writer.write_table(pyarrow.Table.from_pylist([feature_row(one) for one in portion], schema))
            yield sink.take()
    writer.close()
    yield sink.take()
