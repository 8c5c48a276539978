"""Bypass, induce and KL of many candidate directions in few forward passes, head at the last position only.

1. One pass per class without intervention: the plain first-token logits, and for harmless prompts the stream before
   each layer.
2. Induce first, since most candidates fail there: the pass starts at the candidate's layer from the kept stream, and
   the blocks before it are not run; candidates of one layer share a batch, each row adding its own candidate.
3. Bypass and KL only for candidates that pass: harmful and harmless prompts stand in one batch, several candidates
   share it, and each row is ablated along its own candidate.

Rows are cut into passes of `batch_rows`, whatever the number of prompts and candidates.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.interventions import ablation_per_row, resumed_addition
from safe_sail.directions.projection import orthonormal_basis
from safe_sail.evaluation.utility import kl_divergence, refusal_metric
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.resume import skipped_blocks
from safe_sail.model.tokens import TokenBatch, rows_of
from safe_sail.sites import Site, SiteKind


class Candidate(NamedTuple):
    """One difference of means, not normalised."""

    position: int
    """Counted back from the prompt's end: -1 is its last token."""
    layer: int
    """Layer whose input it was read from."""
    vector: Float[Tensor, " d_model"]


class AblationScores(NamedTuple):
    """Scores of one candidate under ablation, prompt by prompt."""

    bypass: Float[Tensor, " harmful"]
    kl: Float[Tensor, " harmless"]


@final
class CandidateScorer:
    """Scores candidates on fixed validation prompts and counts the passes that it takes."""

    def __init__(
        self,
        handle: HookedModel,
        harmful: TokenBatch,
        harmless: TokenBatch,
        *,
        layers: Collection[int],
        refusal_ids: Sequence[int],
        batch_rows: int,
    ) -> None:
        self._handle = handle
        self._harmful, self._harmless = harmful.left_padded(), harmless.left_padded()
        self._both = _stacked(self._harmful, self._harmless)
        self._refusal_ids = tuple(refusal_ids)
        self._batch_rows = batch_rows
        self._streams: dict[int, Tensor] = {}
        self.n_launches = 0
        """Forward passes so far."""
        self.plain_harmful: Float[Tensor, "harmful d_vocab"] = self._plain(self._harmful, ())
        """Logits of the first reply token."""
        self.plain_harmless: Float[Tensor, "harmless d_vocab"] = self._plain(self._harmless, sorted(layers))
        """Logits of the first reply token."""

    @torch.no_grad()
    def _plain(self, batch: TokenBatch, layers: Sequence[int]) -> Tensor:
        sites = [Site(SiteKind.RESID_PRE, layer) for layer in layers]
        logits, streams = [], {layer: list[Tensor]() for layer in layers}
        for first in range(0, len(batch), self._batch_rows):
            part = rows_of(batch, range(first, min(first + self._batch_rows, len(batch))))
            run = self._handle.run(part, sites, logits="last")
            self.n_launches += 1
            assert run.logits is not None
            logits.append(run.logits[:, -1])
            for layer, site in zip(layers, sites, strict=True):
                streams[layer].append(run.captures[site])
        self._streams |= {layer: torch.cat(parts) for layer, parts in streams.items()}
        return torch.cat(logits)

    def induce(self, candidates: Sequence[Candidate]) -> list[Float[Tensor, " harmless"]]:
        """Refusal metric of each harmless prompt with the candidate added before its layer."""
        scores: dict[int, Tensor] = {}
        for layer in sorted({candidate.layer for candidate in candidates}):
            index = [place for place, candidate in enumerate(candidates) if candidate.layer == layer]
            vectors = torch.stack([candidates[place].vector for place in index])
            found = self._induce_at(layer, vectors)
            scores |= dict(zip(index, found, strict=True))
        return [scores[place] for place in range(len(candidates))]

    @torch.no_grad()
    def _induce_at(
        self, layer: int, vectors: Float[Tensor, "candidates d_model"]
    ) -> Float[Tensor, "candidates harmless"]:
        n = len(self._harmless)
        stream = self._streams[layer]
        metrics = []
        for candidates, prompts in self._launches(len(vectors), n):
            edits = resumed_addition(layer, stream[prompts], vectors[candidates])
            with skipped_blocks(self._handle, layer):
                logits = self._last_logits(rows_of(self._harmless, prompts), edits)
            metrics.append(refusal_metric(logits, self._refusal_ids).cpu())
        return torch.cat(metrics).reshape(len(vectors), n)

    @torch.no_grad()
    def ablate(
        self, candidates: Sequence[Candidate], beside: Float[Tensor, "rank d_model"] | None = None
    ) -> list[AblationScores]:
        """Refusal metric of each harmful prompt and KL of each harmless prompt with the candidate ablated, together
        with the rows of `beside`.
        """
        if not candidates:
            return []
        n_harmful, n = len(self._harmful), len(self._both)
        given = [] if beside is None else [beside]
        bases = torch.stack(
            [orthonormal_basis(torch.cat([*given, candidate.vector[None]])) for candidate in candidates]
        )
        metrics, kls = torch.empty(len(candidates), n_harmful, dtype=torch.float64), []
        for which, prompts in self._launches(len(candidates), n):
            logits = self._last_logits(rows_of(self._both, prompts), ablation_per_row(self._handle, bases[which]))
            is_harmful = torch.tensor(prompts) < n_harmful
            harmful, harmless = is_harmful.nonzero()[:, 0], (~is_harmful).nonzero()[:, 0]
            where = torch.tensor(prompts)
            scored = refusal_metric(logits, self._refusal_ids).cpu()
            metrics[torch.tensor(which)[harmful], where[harmful]] = scored[harmful]
            plain = self.plain_harmless[(where[harmless] - n_harmful).to(self.plain_harmless.device)]
            kls.append(kl_divergence(plain, logits[harmless.to(logits.device)]).cpu())
        by_candidate = torch.cat(kls).reshape(len(candidates), len(self._harmless))
        return [AblationScores(metrics[place], by_candidate[place]) for place in range(len(candidates))]

    def _last_logits(self, batch: TokenBatch, edits: Mapping[Site, Edit] = NO_EDITS) -> Float[Tensor, "batch d_vocab"]:
        self.n_launches += 1
        return self._handle.logits(batch, edits, positions="last")[:, -1]

    def _launches(self, n_candidates: int, n_prompts: int) -> Iterator[tuple[list[int], list[int]]]:
        """Candidate and prompt of each row, pass by pass; all prompts of a candidate follow each other."""
        total = n_candidates * n_prompts
        for first in range(0, total, self._batch_rows):
            rows = range(first, min(first + self._batch_rows, total))
            yield [row // n_prompts for row in rows], [row % n_prompts for row in rows]


def _stacked(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    """Two left-padded batches as one, the narrower padded further on the left."""
    width = max(first.token_ids.shape[1], second.token_ids.shape[1])

    def widened(x: Tensor, fill: Tensor) -> Tensor:
        return torch.cat([fill.expand(x.shape[0], width - x.shape[1]), x], dim=1)

    # Padding is masked, so any id serves; one that stands in the batch is in the vocabulary.
    some_id, no = first.token_ids[:1, :1], torch.zeros_like(first.attention_mask[:1, :1])
    return TokenBatch(
        torch.cat([widened(batch.token_ids, some_id) for batch in (first, second)]),
        torch.cat([widened(batch.attention_mask, no) for batch in (first, second)]),
        first.source_ids + second.source_ids,
    )
