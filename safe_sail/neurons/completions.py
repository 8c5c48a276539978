"""Prompts with their completions as token ids, never decoded in between, and which positions count.

1. A completion is what a model generates before its end-of-text token, kept as ids: decoding and reading it again
   could give other ids, and so another text than the model wrote.
2. Prompt and completion of each row stand together without padding between them.
3. Two conventions say which positions count: the paper's are those that predict a completion token, so the last token
   of the prompt is the first; the published code's are the completion tokens themselves.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from safe_sail.errors import CompletionMissing
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, batch_of_ids, pad_id_of, parts_by_length, trimmed
from safe_sail.neurons.pair import ModelPair
from safe_sail.settings import ChangePositions


class Completed(NamedTuple):
    """One prompt and what was generated after it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def complete(
    pair: ModelPair, writer: HookedModel, batch: TokenBatch, max_new_tokens: int, batch_rows: int
) -> list[Completed]:
    """What `writer`, one model of the pair, generates greedily after each prompt, in the order of the prompts."""
    ends = end_ids(pair)
    found: list[Completed | None] = [None] * len(batch)
    for rows in parts_by_length(batch, batch_rows):
        part = trimmed(batch, rows)
        new = writer.generate(part, max_new_tokens).tolist()
        for row, prompt, ids in zip(rows, prompts_of(part), new, strict=True):
            stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            found[row] = Completed(prompt, tuple(ids[:stop]))
    return [one for one in found if one is not None]


def require_completions(texts: Sequence[Completed]) -> None:
    """Nothing, when there is a text and every prompt has a completion.

    Raises:
        CompletionMissing: there is no text, or a completion is empty.
    """
    if not texts:
        raise CompletionMissing("expected at least one prompt with its completion; got none.")
    for index, one in enumerate(texts):
        if not one.prompt or not one.completion:
            what = "completion" if one.prompt else "prompt"
            raise CompletionMissing(
                f"text {index} has no {what} token; models are contrasted on completions, so leave the prompt out or "
                f"let a model complete it."
            )


def completed_batches(
    texts: Sequence[Completed], pair: ModelPair, positions: ChangePositions, batch_rows: int
) -> Iterator[tuple[TokenBatch, Bool[Tensor, "batch seq"]]]:
    """Batches of texts of similar length, each with the mask of the positions that count."""
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row].prompt) + len(texts[row].completion), row))
    for first in range(0, len(order), batch_rows):
        chosen = [texts[row] for row in order[first : first + batch_rows]]
        batch = batch_of_ids(
            [one.prompt + one.completion for one in chosen],
            pad_id=pad_id_of(pair.first.tokenizer),
            padding_side="right",
            max_positions=pair.first.dims.max_positions,
        )
        counted = torch.zeros_like(batch.token_ids, dtype=torch.bool)
        for row, one in enumerate(chosen):
            begin = len(one.prompt) - (positions == "predicting")
            counted[row, begin : begin + len(one.completion)] = True
        yield batch, counted


def end_ids(pair: ModelPair) -> frozenset[int]:
    """Ids that end a reply of either model: a base and a chat model may name different ones."""
    return frozenset(pair.first.end_ids()) | frozenset(pair.second.end_ids())


def prompts_of(batch: TokenBatch) -> list[tuple[int, ...]]:
    """Real tokens of each row."""
    return [tuple(ids[real].tolist()) for ids, real in zip(batch.token_ids, batch.is_real, strict=True)]
