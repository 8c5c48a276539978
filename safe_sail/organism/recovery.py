"""Whether the neurons that change most between two models are the planted ones.

1. The first model replies to prompts, greedily; the generated ids are kept as they are.
2. Both models read prompt and reply. A neuron's change is the root mean square of the difference of its activations,
   over all positions that predict a token of the reply.
3. As many neurons as were planted are taken from the top of all layers together; their share that was planted is
   precision and recall at once.

A neuron after the first planted layer changes too if what it reads changes, so a perfect ranking is not to be expected.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import NeuronRef
from safe_sail.sites import Site, SiteKind

MAX_NEW_TOKENS: Final = 32


class Recovery(NamedTuple):
    """How many of the planted neurons the change ranks first."""

    n_planted: int
    n_found: int
    """Planted ones among as many with the greatest change."""
    precision: float
    """n_found / n_planted, recall as well."""
    chance: float
    """What a random ranking gives: the planted share of all neurons."""
    n_prompts: int


@torch.no_grad()
def neuron_change(
    first: HookedModel, second: HookedModel, prompts: Sequence[str], batch_rows: int = 64
) -> Float[Tensor, "n_layers d_mlp"]:
    """Root mean square over reply positions of how much each neuron differs, on the first model's replies; float64."""
    sites = [Site(SiteKind.MLP_ACT, layer) for layer in range(first.dims.n_layers)]
    total = torch.zeros(first.dims.n_layers, first.dims.d_mlp, dtype=torch.float64)
    count = 0
    for start in range(0, len(prompts), batch_rows):
        asked = first.chat_batch(prompts[start : start + batch_rows])
        reply = first.generate(asked, MAX_NEW_TOKENS).cpu()
        is_reply = reply != first.tokenizer.pad_token_id
        batch = TokenBatch(
            torch.cat([asked.token_ids, reply], 1),
            torch.cat([asked.is_real, is_reply], 1),
            asked.source_ids,
        )
        # The last prompt token predicts the first reply token, so the mask moves one place to the left.
        predicts = torch.zeros_like(batch.is_real)
        predicts[:, asked.token_ids.shape[1] - 1 : -1] = is_reply
        before, after = first.capture(batch, sites), second.capture(batch, sites)
        for layer, site in enumerate(sites):
            difference = (after[site] - before[site])[predicts.to(first.device)].double()
            total[layer] += difference.square().sum(0).cpu()
        count += int(predicts.sum())
    return (total / count).sqrt()


def recover(change: Float[Tensor, "n_layers d_mlp"], planted: Sequence[NeuronRef], n_prompts: int) -> Recovery:
    """How many planted neurons are among as many with the greatest change (ties: the lower layer and index)."""
    order = change.flatten().sort(descending=True, stable=True).indices[: len(planted)].tolist()
    d_mlp = change.shape[1]
    found = {NeuronRef(place // d_mlp, place % d_mlp) for place in order} & set(planted)
    share = len(found) / len(planted)
    return Recovery(len(planted), len(found), share, len(planted) / change.numel(), n_prompts)
