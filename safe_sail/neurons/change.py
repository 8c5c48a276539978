"""Change scores of a pair of models: both read the same texts, each neuron's difference is summed as it is read.

1. One of the two models completes the prompts; both then read prompt and completion.
2. In a doubled pass a hook sees both models' activations of one layer at once, adds their squared difference to the
   sums and lets go of them: nothing of one layer is kept when the next is computed.
3. Where one pass cannot run both, each model reads the batch and the activations of that batch are compared.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import NeuronsMissing
from safe_sail.model.edits import Edit
from safe_sail.model.tokens import TokenBatch
from safe_sail.neurons.completions import Completed, completed_batches, require_completions
from safe_sail.neurons.contrast import ChangeSums
from safe_sail.neurons.doubling import doubled_batch
from safe_sail.neurons.pair import ModelPair
from safe_sail.settings import ChangePositions
from safe_sail.sites import Site, SiteKind

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """No progress report."""


def change_sums(
    pair: ModelPair,
    texts: Sequence[Completed],
    *,
    positions: ChangePositions = "predicting",
    batch_rows: int,
    progress: Progress = silent,
) -> ChangeSums:
    """Sums behind the change scores over the texts' completions.

    Raises:
        CompletionMissing: there is no text, or a prompt has no completion.
        NeuronsMissing: no layer of the models has neurons.
        SequenceTooLong: a text has more tokens than the models accept.
    Source: Chen et al. 2025, eq. 3, arXiv:2406.14144: pooled over all tokens, so long completions weigh more.
    """
    require_completions(texts)
    if not pair.layers:
        raise NeuronsMissing(f"{pair.first.model_id}: every MLP is a mixture of experts, which has no neurons to rank.")
    dims = pair.first.dims
    sums = ChangeSums(dims.n_layers, dims.d_mlp, device=pair.first.device)
    add = _add_doubled if pair.can_double else _add_separately
    done = 0
    with torch.no_grad():
        for batch, counted in completed_batches(texts, pair, positions, batch_rows):
            add(pair, batch, counted, sums)
            sums.count(counted)
            done += len(batch)
            progress(f"contrasting: {done} of {len(texts)} texts")
    return sums


def change_scores(
    pair: ModelPair,
    texts: Sequence[Completed],
    *,
    positions: ChangePositions = "predicting",
    batch_rows: int,
) -> Float[Tensor, "n_layers d_mlp"]:
    """Root-mean-square change of every neuron over the texts' completions, float64.

    Raises:
        CompletionMissing: there is no text, or a prompt has no completion.
        NeuronsMissing: no layer of the models has neurons.
    """
    return change_sums(pair, texts, positions=positions, batch_rows=batch_rows).scores()


def _add_doubled(pair: ModelPair, batch: TokenBatch, counted: Bool[Tensor, "batch seq"], sums: ChangeSums) -> None:
    def reader(layer: int) -> Edit:
        def read(x: Tensor) -> Tensor:
            first, second = x.chunk(2)
            sums.add(layer, first, second, counted)
            return x

        return read

    edits = {Site(SiteKind.MLP_ACT, layer): reader(layer) for layer in pair.layers}
    with pair.doubled() as both:
        both.run(doubled_batch(batch), [max(edits)], edits, logits="none")


def _add_separately(pair: ModelPair, batch: TokenBatch, counted: Bool[Tensor, "batch seq"], sums: ChangeSums) -> None:
    sites = [Site(SiteKind.MLP_ACT, layer) for layer in pair.layers]
    first, second = (one.capture(batch, sites) for one in (pair.first, pair.second))
    for layer, site in zip(pair.layers, sites, strict=True):
        sums.add(layer, first[site], second[site], counted)
