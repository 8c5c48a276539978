"""What units write times what features read, token by token: the direct path through the stream, exact.

1. Of every text and feature, the value of a site at one token.
2. A head writes its value mix times W_O, a neuron its activation times its row of W_out; a feature reads its encoder
   row. The product is the unit's share of the feature's pre-activation.
3. Where a norm stands between the write and the stream, its gain joins the row that is read and its scale at that
   token, held fixed, multiplies the share.

Shares are linear in what is written, so they add up: over all units, with the embedding and the biases, to the
feature's pre-activation.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def peak_tokens(
    pre_activations: Float[Tensor, "batch seq features"], counted: Bool[Tensor, "batch seq"]
) -> Int[Tensor, "batch features"]:
    """Column where each feature is nearest to firing, among the tokens that count (ties: the first)."""
    hidden = pre_activations.masked_fill(~counted[..., None].to(pre_activations.device), -torch.inf)
    return hidden.argmax(dim=1)


def values_at(
    x: Float[Tensor, "batch seq *unit"], columns: Int[Tensor, "batch features"]
) -> Float[Tensor, "batch features *unit"]:
    """Value of every text at the column of each feature."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, columns.to(x.device)]


def head_shares(
    mixes: Float[Tensor, "batch features n_heads d_head"],
    W_O: Float[Tensor, "n_heads d_head d_model"],
    read: Float[Tensor, "features d_model"],
) -> Float[Tensor, "batch features n_heads"]:
    """What each head writes along the row that each feature reads."""
    through = torch.einsum("hdm,fm->fhd", W_O, read)
    return torch.einsum("bfhd,fhd->bfh", mixes, through)


def neuron_shares(
    activations: Float[Tensor, "batch features d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
    read: Float[Tensor, "features d_model"],
) -> Float[Tensor, "batch features d_mlp"]:
    """What each neuron writes along the row that each feature reads."""
    return activations * (read @ W_out.T)


def fixed_scale(
    normed: Float[Tensor, "batch features d_model"], gained: Float[Tensor, "batch features d_model"]
) -> Float[Tensor, "batch features"]:
    """The factor s of a norm without centring, where normed = s * gained and gained is its input times its gain."""
    return (normed * gained).sum(-1) / (gained * gained).sum(-1)
