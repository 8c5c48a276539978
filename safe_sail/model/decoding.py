"""A continuation in progress: the key-value cache, and one pass for each token that the caller chooses.

1. The first pass reads the prompt; every later one reads one token a row.
2. The caller picks the tokens, so that several models, or several rows, can be kept on one text.
3. A pass may end early at a site; the cache then grows in the layers above it alone.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from safe_sail.model.edits import Step
from safe_sail.model.hooks import Stop
from safe_sail.model.tokens import TokenBatch


@final
class Decoding:
    """One batch that is being continued; made by `HookedModel.decoding`, of no use after its scope."""

    def __init__(self, model: Any, batch: TokenBatch, at: Callable[[Step], AbstractContextManager[None]]) -> None:
        self._model = model
        self._at = at
        self._cache = DynamicCache(config=model.config)
        self._ids = batch.token_ids
        self._mask = batch.attention_mask.long()
        self._positions = batch.position_ids
        self._is_real = batch.is_real

    def read_prompt(self) -> Float[Tensor, "batch d_vocab"] | None:
        """Logits after the prompt; None where the pass ends at a site."""
        return self._pass(is_prefill=True)

    def read_token(
        self, tokens: Int[Tensor, " batch"], is_real: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_vocab"] | None:
        """Logits after one more token in each row; `is_real` is False in rows that have ended."""
        self._ids, self._is_real = tokens[:, None], is_real[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        return self._pass(is_prefill=False)

    def _pass(self, *, is_prefill: bool) -> Tensor | None:
        with self._at(Step(self._positions, self._is_real, is_prefill=is_prefill)):
            try:
                found = self._model(
                    input_ids=self._ids,
                    attention_mask=self._mask,
                    position_ids=self._positions,
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            except Stop:
                return None
        logits: Tensor = found.logits[:, -1]
        return logits
