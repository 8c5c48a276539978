"""A feature's sampled contexts as one row of `context_samples.parquet`, one after another, and back."""

from typing import Any, Final

from db.packing import pack_texts, unpack_texts
from db.store.samples import GROUPS
from safe_sail.errors import BadInput
from safe_sail.records import Context, ContextSample, FeatureId

Row = dict[str, Any]

COLUMNS: Final = {
    "quantile_999": "float64", "kinds": "string[]", "lengths": "int32[]", "peaks": "int32[]", "tokens": "string[]",
    "token_ids": "int32[]", "activations": "float32[]", "source_ids": "string[]", "exact": "binary?",
}  # fmt: skip
"""Beside the feature's; `exact` holds tokens and source ids byte for byte where Parquet's texts cannot."""


def sample_row(sample: ContextSample) -> Row:
    """The row, without the feature."""
    contexts = [context for name in GROUPS for context in getattr(sample, name)]
    tokens = [token for context in contexts for token in context.tokens]
    texts = [*tokens, *(context.source_id for context in contexts)]
    shown = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    return {
        "quantile_999": sample.quantile_999,
        "kinds": [name for name in GROUPS for _ in getattr(sample, name)],
        "lengths": [len(context.tokens) for context in contexts],
        "peaks": [context.peak for context in contexts],
        "tokens": shown[: len(tokens)],
        "token_ids": [token for context in contexts for token in context.token_ids],
        "activations": [value for context in contexts for value in context.activations],
        "source_ids": shown[len(tokens) :],
        "exact": None if shown == texts else pack_texts(texts),
    }


def sample_of_row(row: Row) -> ContextSample:
    """The record of a row.

    Raises:
        BadInput: the lists' lengths do not fit each other, or a kind is unknown.
    """
    texts = [*row["tokens"], *row["source_ids"]] if row["exact"] is None else unpack_texts(row["exact"])
    n, total = len(row["lengths"]), sum(row["lengths"])
    sizes = [len(row[name]) for name in ("kinds", "peaks", "source_ids")]
    if sizes != [n] * 3 or [len(row["token_ids"]), len(row["activations"]), len(texts)] != [total, total, total + n]:
        raise BadInput(f"expected lists for {n} contexts of {total} tokens; their lengths differ.")
    if unknown := sorted(set(row["kinds"]) - set(GROUPS)):
        raise BadInput(f"kinds of contexts are {', '.join(GROUPS)}; got {', '.join(unknown)}.")
    groups: dict[str, list[Context]] = {name: [] for name in GROUPS}
    start = 0
    for place, (kind, length) in enumerate(zip(row["kinds"], row["lengths"], strict=True)):
        part = slice(start, start + length)
        start += length
        groups[kind].append(
            Context(
                tokens=tuple(texts[part]), token_ids=tuple(row["token_ids"][part]),
                activations=tuple(row["activations"][part]), peak=row["peaks"][place], source_id=texts[total + place],
            )
        )  # fmt: skip
    feature = FeatureId(sae=row["sae"], index=row["index"])
    kept = {name: tuple(found) for name, found in groups.items()}
    return ContextSample(feature=feature, quantile_999=row["quantile_999"], **kept)
