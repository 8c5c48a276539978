"""Batches of tokens: padding, position ids, masks, the last real token.

A batch says itself which tokens are real; nothing is inferred from the padding id, because a tokenizer without a
padding token pads with its end-of-text token, which also stands in texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safe_sail.errors import BadText, SequenceTooLong

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts of unequal length as one rectangle."""

    token_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]
    """1 at real tokens, which stand together; 0 at padding."""
    source_ids: tuple[str, ...]
    """Where each row comes from."""

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 2 or self.token_ids.shape != self.attention_mask.shape:
            raise BadText(
                f"a batch needs ids and mask of one shape [batch, seq]; got {tuple(self.token_ids.shape)} and "
                f"{tuple(self.attention_mask.shape)}."
            )
        if len(self.source_ids) != self.token_ids.shape[0]:
            raise BadText(f"{self.token_ids.shape[0]} rows need as many source ids; got {len(self.source_ids)}.")
        mask = self.attention_mask.long()  # a bool mask has another `diff`
        if not bool(mask.any(dim=1).all()) or mask.shape[0] == 0:
            raise BadText("every row of a batch needs at least one real token; at least one row has none.")
        starts = mask[:, :1].sum() + (mask.diff(dim=1) == 1).sum()
        if int(starts) != mask.shape[0]:
            raise BadText("the real tokens of a row stand together; a row has padding between them.")

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def position_ids(self) -> Int[Tensor, "batch seq"]:
        """Place of each token in its own text, from 0 at the first real token; padding holds some valid place."""
        return (self.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)

    @property
    def is_real(self) -> Bool[Tensor, "batch seq"]:
        """False at padding."""
        return self.attention_mask.bool()

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens per row."""
        return self.attention_mask.long().sum(dim=1)

    @property
    def last_real(self) -> Int[Tensor, " batch"]:
        """Column of each row's last real token."""
        columns = torch.arange(self.token_ids.shape[1], device=self.token_ids.device)
        return (columns * self.attention_mask).amax(dim=1)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(self.token_ids.to(device), self.attention_mask.to(device), self.source_ids)

    def left_padded(self) -> "TokenBatch":
        """The same rows with their padding moved to the left."""
        seq = self.token_ids.shape[1]
        shift = seq - 1 - self.last_real
        if not bool(shift.any()):
            return self
        columns = (torch.arange(seq, device=shift.device) - shift[:, None]) % seq
        return TokenBatch(self.token_ids.gather(1, columns), self.attention_mask.gather(1, columns), self.source_ids)


def rows_of(batch: TokenBatch, index: Sequence[int]) -> TokenBatch:
    """These rows of a batch, in this order; a row may come more than once."""
    chosen = list(index)
    return TokenBatch(
        batch.token_ids[chosen], batch.attention_mask[chosen], tuple(batch.source_ids[row] for row in chosen)
    )


def trimmed(batch: TokenBatch, rows: Sequence[int]) -> TokenBatch:
    """These rows, padded on the left, without the columns that are padding in all of them."""
    found = rows_of(batch.left_padded(), rows)
    first = int(found.token_ids.shape[1] - found.lengths.max())
    return TokenBatch(found.token_ids[:, first:], found.attention_mask[:, first:], found.source_ids)


def parts_by_length(batch: TokenBatch, batch_rows: int) -> list[list[int]]:
    """Rows in groups of similar length (ties: row order), so that little is padding."""
    order = sorted(range(len(batch)), key=lambda row: (int(batch.lengths[row]), row))
    return [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]


def batch_of_ids(
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    padding_side: PaddingSide,
    max_positions: int,
    source_ids: Sequence[str] | None = None,
) -> TokenBatch:
    """Batch of token id rows; source ids count the rows from 0 when none are given.

    Raises:
        BadText: there are no rows, or a row is empty.
        SequenceTooLong: a row has more tokens than the model accepts.
    """
    if not rows:
        raise BadText("expected at least one text, got none.")
    names = tuple(source_ids) if source_ids is not None else tuple(str(index) for index in range(len(rows)))
    for name, row in zip(names, rows, strict=False):
        if not row:
            raise BadText(f"text {name} has no tokens; expected at least one.")
        if len(row) > max_positions:
            raise SequenceTooLong(
                f"text {name} has {len(row)} tokens, the model accepts {max_positions}; shorten or split it."
            )
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if padding_side == "left" else slice(0, len(row))
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return TokenBatch(ids, mask, names)


def batch_of_texts(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    padding_side: PaddingSide,
    max_positions: int,
    source_ids: Sequence[str] | None = None,
    add_special_tokens: bool = True,
) -> TokenBatch:
    """Batch of texts, with the tokenizer's own special tokens unless they are turned off.

    Raises:
        BadText: there is no text, a text is empty, or its tokens are all special.
        SequenceTooLong: a text has more tokens than the model accepts.
    """
    if isinstance(texts, str):
        raise BadText(f"expected a sequence of texts, got one str ({texts[:40]!r}); put it in a list.")
    special = special_ids(tokenizer)
    rows: list[list[int]] = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadText(f"text {index}: expected a str, got {type(text).__name__}.")
        # `verbose` would log its own length warning; `max_positions` refuses below
        row = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        if not text or all(token in special for token in row):
            raise BadText(f"text {index} has no content tokens; it reads {text[:80]!r}. Expected a text with words.")
        rows.append(row)
    return batch_of_ids(
        rows,
        pad_id=pad_id_of(tokenizer),
        padding_side=padding_side,
        max_positions=max_positions,
        source_ids=source_ids,
    )


def pad_id_of(tokenizer: Any) -> int:
    """Id that fills padding; load.py has set it to end-of-text where the tokenizer has none of its own.

    Raises:
        BadText: the tokenizer has neither.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    raise BadText("the tokenizer has neither a padding nor an end-of-text token; set `tokenizer.pad_token`.")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of special tokens: the tokenizer's named ones, and every added token flagged as special."""
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def content_mask(batch: TokenBatch, tokenizer: Any) -> Bool[Tensor, "batch seq"]:
    """True where a token is neither padding nor special: the tokens that features and statistics count."""
    special = torch.tensor(sorted(special_ids(tokenizer)), device=batch.token_ids.device, dtype=torch.long)
    return batch.is_real & ~torch.isin(batch.token_ids, special)
