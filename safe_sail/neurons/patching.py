"""Dynamic activation patching: the first model writes while chosen neurons hold the second model's activations.

1. Both models read the text so far; at every position the chosen neurons of the first take the values of the second.
2. The first model's next token, the likeliest, is appended to the text of both.
3. The second model reads the patched text unpatched, so its activations are those it would have on it.

Each model keeps its own key-value cache, so a step reads one token. Where one pass can run both, it does: between the
first block whose weights differ and the deepest chosen layer, the first half of its rows are the first model's, the
second half the second's, and a hook copies from one half to the other. Otherwise (other devices, other settings) the
second model runs beside the first, up to the deepest chosen layer and without head.
Several patches, each another set of neurons, share a batch: a row says by its mask which neurons it takes.

Source: Chen et al. 2025, algorithm 1, arXiv:2406.14144.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from safe_sail.errors import BadSettings, ModelsDiffer
from safe_sail.model.decoding import Decoding
from safe_sail.model.edits import Edit
from safe_sail.model.tokens import TokenBatch, pad_id_of, trimmed
from safe_sail.neurons.completions import end_ids
from safe_sail.neurons.contrast import neuron_mask
from safe_sail.neurons.doubling import doubled_batch
from safe_sail.neurons.pair import ModelPair
from safe_sail.sites import Site, SiteKind

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """No progress report."""


class _Work(NamedTuple):
    """Rows of one pass."""

    patches: list[int]
    """Which patch each row has."""
    rows: list[int]
    """Which prompt each row continues."""


def patched_tokens(
    pair: ModelPair,
    batch: TokenBatch,
    patches: Sequence[Int[Tensor, "neurons 2"]],
    max_new_tokens: int,
    *,
    batch_rows: int,
    doubled: bool | None = None,
    progress: Progress = silent,
) -> Int[Tensor, "patch batch max_new_tokens"]:
    """Greedy replies of the first model under each patch, as ids, padded after their end; on the CPU.

    A patch is the layers and indices of its neurons; an empty one leaves the first model as it is. `batch_rows` counts
    rows of the first model. `doubled` chooses the engine; None takes one doubled pass wherever one can run both:
    however few weights are shared it is the quicker one, benchmarks/bench_patching.py.

    Raises:
        BadSettings: `max_new_tokens` or `batch_rows` is below 1, or no patch was given.
        NeuronsMissing: a patch names a neuron that the models lack.
        ModelsDiffer: a doubled pass was asked for and cannot run both models.
        SequenceTooLong: prompt and reply together exceed the models' positions.
    """
    if min(max_new_tokens, batch_rows, len(patches)) < 1:
        raise BadSettings(
            f"expected at least 1 new token, 1 row and 1 patch; got {max_new_tokens}, {batch_rows}, {len(patches)}."
        )
    dims, batch = pair.first.dims, batch.left_padded()
    masks = torch.stack([neuron_mask(patch, dims.n_layers, dims.d_mlp) for patch in patches])
    if doubled is None:
        doubled = pair.can_double
    scope = _doubled if doubled else _beside
    pad = pad_id_of(pair.first.tokenizer)
    found = torch.full((len(patches), len(batch), max_new_tokens), pad, dtype=torch.long)
    done = 0
    for work in _works(batch, len(patches), batch_rows):
        part = trimmed(batch, work.rows)
        with scope(pair, part, masks[work.patches], max_new_tokens) as step:
            new = _write(pair, step, len(part), max_new_tokens, pad)
        found[work.patches, work.rows, : new.shape[1]] = new.cpu()
        done += len(part)
        progress(f"patching: {done} of {len(patches) * len(batch)} replies")
    return found


def patched_replies(
    pair: ModelPair,
    batch: TokenBatch,
    patches: Sequence[Int[Tensor, "neurons 2"]],
    max_new_tokens: int,
    *,
    batch_rows: int,
    progress: Progress = silent,
) -> list[list[str]]:
    """The same replies as texts without special tokens, by patch and prompt.

    Raises:
        BadSettings: as `patched_tokens`.
        NeuronsMissing: a patch names a neuron that the models lack.
        SequenceTooLong: prompt and reply together exceed the models' positions.
    """
    ids = patched_tokens(pair, batch, patches, max_new_tokens, batch_rows=batch_rows, progress=progress)
    return [pair.first.tokenizer.batch_decode(one, skip_special_tokens=True) for one in ids]


Advance = Callable[[Tensor | None, Tensor], Tensor]
"""From the last tokens (None before the first) and the rows that still run, to the first model's next logits."""


def _write(pair: ModelPair, advance: Advance, rows: int, max_new_tokens: int, pad: int) -> Int[Tensor, "rows new"]:
    device = pair.first.device
    ends = torch.tensor(sorted(end_ids(pair)), dtype=torch.long, device=device)
    running = torch.ones(rows, dtype=torch.bool, device=device)
    new: list[Tensor] = []
    while len(new) < max_new_tokens and bool(running.any()):
        logits = advance(new[-1] if new else None, running)
        new.append(torch.where(running, logits.argmax(dim=-1), pad))
        running = running & ~torch.isin(new[-1], ends)
    return torch.stack(new, dim=1)


def _works(batch: TokenBatch, n_patches: int, batch_rows: int) -> Iterator[_Work]:
    """Every prompt under every patch, rows of similar length together (ties: prompt, then patch)."""
    order = sorted(range(len(batch)), key=lambda row: (int(batch.lengths[row]), row))
    every = [(patch, row) for row in order for patch in range(n_patches)]
    for first in range(0, len(every), batch_rows):
        part = every[first : first + batch_rows]
        yield _Work([patch for patch, _ in part], [row for _, row in part])


def _chosen(masks: Bool[Tensor, "rows n_layers d_mlp"], device: torch.device) -> dict[int, Bool[Tensor, "rows 1 d"]]:
    """Masks of the layers where a row takes a neuron."""
    return {layer: masks[:, layer, None].to(device) for layer in masks.any(dim=2).any(dim=0).nonzero()[:, 0].tolist()}


@contextmanager
def _doubled(
    pair: ModelPair, part: TokenBatch, masks: Bool[Tensor, "rows n_layers d_mlp"], max_new_tokens: int
) -> Iterator[Advance]:
    if not pair.can_double:
        raise ModelsDiffer(f"{pair!r}: one pass cannot run both; see `can_double`.")
    begin = pair.first_block_apart
    # before the first block that differs both models have the same activations, so patching them changes nothing
    chosen = {layer: one for layer, one in _chosen(masks, pair.first.device).items() if layer >= (begin or 0)}
    if not chosen:
        with pair.first.decoding(part, max_new_tokens) as alone:
            yield lambda tokens, running: _read(alone, tokens, running)
        return
    given = part if begin is not None else doubled_batch(part)
    times = len(given) // len(part)
    with (
        pair.doubled_until(max(chosen)) as both,
        both.decoding(given, max_new_tokens, _copies(chosen)) as decoding,
    ):
        yield lambda tokens, running: _read(
            decoding, None if tokens is None else tokens.repeat(times), running.repeat(times)
        )


def _copies(chosen: dict[int, Bool[Tensor, "rows 1 d"]]) -> dict[Site, Edit]:
    """Edits that copy chosen neurons of the second half of the rows into the first."""

    def copier(mask: Tensor) -> Edit:
        takes = torch.stack([mask, torch.zeros_like(mask)])

        def copy(x: Tensor) -> Tensor:
            halves = x.unflatten(0, (2, -1))
            return torch.where(takes, halves[1:], halves).flatten(0, 1)

        return copy

    return {Site(SiteKind.MLP_ACT, layer): copier(mask) for layer, mask in chosen.items()}


@contextmanager
def _beside(
    pair: ModelPair, part: TokenBatch, masks: Bool[Tensor, "rows n_layers d_mlp"], max_new_tokens: int
) -> Iterator[Advance]:
    chosen = _chosen(masks, pair.first.device)
    sites = {layer: Site(SiteKind.MLP_ACT, layer) for layer in chosen}
    held: dict[int, Tensor] = {}

    def keeper(layer: int) -> Edit:
        def keep(x: Tensor) -> Tensor:
            held[layer] = x
            return x

        return keep

    def putter(layer: int, mask: Tensor) -> Edit:
        return lambda x: torch.where(mask.to(x.device), held.pop(layer).to(x.device), x)

    puts = {sites[layer]: putter(layer, mask) for layer, mask in chosen.items()}
    if not chosen:
        with pair.first.decoding(part, max_new_tokens) as alone:
            yield lambda tokens, running: _read(alone, tokens, running)
        return
    keeps = {site: keeper(layer) for layer, site in sites.items()}
    with (
        pair.second.decoding(part, max_new_tokens, keeps, until=max(keeps)) as theirs,
        pair.first.decoding(part, max_new_tokens, puts) as mine,
    ):

        def advance(tokens: Tensor | None, running: Tensor) -> Tensor:
            device = pair.second.device
            if tokens is None:
                theirs.read_prompt()
            else:
                theirs.read_token(tokens.to(device), running.to(device))
            return _read(mine, tokens, running)

        yield advance


def _read(decoding: Decoding, tokens: Tensor | None, running: Tensor) -> Tensor:
    logits = decoding.read_prompt() if tokens is None else decoding.read_token(tokens, running)
    assert logits is not None
    return logits
