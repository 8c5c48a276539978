"""Pairs of texts as token batches: with a concept and without it, cut into parts that fit one pass."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import EmptyConcept
from safe_sail.model.chat import instruction_mask
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, content_mask, parts_by_length, trimmed


class TextPart(NamedTuple):
    """Some texts of a batch, as one pass reads them."""

    rows: list[int]
    """Their places in the whole."""
    batch: TokenBatch
    counted: Bool[Tensor, "batch seq"]
    """Tokens at which a feature is read."""


class PairedTexts(NamedTuple):
    """Texts of pairs: first every text with the concept, then in the same order those without it."""

    batch: TokenBatch
    counted: Bool[Tensor, "texts seq"]
    n_pairs: int

    def parts(self, batch_rows: int) -> Iterator[TextPart]:
        """All texts, similar lengths together."""
        return self._parts(range(2 * self.n_pairs), batch_rows)

    def parts_with(self, batch_rows: int) -> Iterator[TextPart]:
        """The texts with the concept alone."""
        return self._parts(range(self.n_pairs), batch_rows)

    def parts_without(self, batch_rows: int) -> Iterator[TextPart]:
        """The texts without the concept alone."""
        return self._parts(range(self.n_pairs, 2 * self.n_pairs), batch_rows)

    def _parts(self, wanted: range, batch_rows: int) -> Iterator[TextPart]:
        chosen = [row for rows in parts_by_length(self.batch, len(self.batch)) for row in rows if row in wanted]
        for first in range(0, len(chosen), batch_rows):
            rows = chosen[first : first + batch_rows]
            part = trimmed(self.batch, rows)
            yield TextPart(rows, part, self.counted[rows][:, -part.token_ids.shape[1] :])

    def differences(self, values: Float[Tensor, "*texts_first"]) -> Float[Tensor, "*pairs_first"]:
        """Value of the text with the concept minus that of the text without it."""
        return values[: self.n_pairs] - values[self.n_pairs :]


def paired_texts(
    handle: HookedModel, pairs: Sequence[tuple[str, str]], *, concept: str, as_chat: bool, system: str | None = None
) -> PairedTexts:
    """Pairs (with the concept, without it) as one left-padded batch.

    With `as_chat` texts are user turns and only the instruction's own tokens count; else every content token.

    Raises:
        EmptyConcept: there are fewer than two pairs.
        ChatTemplateMissing: `as_chat` and the tokenizer has no chat template.
    """
    if len(pairs) < 2:
        raise EmptyConcept(
            f"concept `{concept}`: expected at least 2 pairs of texts with and without it, got {len(pairs)}. Give the "
            f"rows of one text with and without the concept one `pair` name."
        )
    texts = [text for text, _ in pairs] + [text for _, text in pairs]
    if as_chat:
        batch = handle.chat_batch(texts, system=system)
        counted = instruction_mask(batch, handle.tokenizer, system=system)
    else:
        batch = handle.batch(texts)
        counted = content_mask(batch, handle.tokenizer)
    if not bool(counted.any(dim=1).all()):
        # a text that melts into the template's tokens has none of its own
        counted = torch.where(counted.any(dim=1, keepdim=True), counted, content_mask(batch, handle.tokenizer))
    return PairedTexts(batch, counted, len(pairs))
