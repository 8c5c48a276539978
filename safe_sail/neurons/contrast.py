"""How much each neuron changes between two models on the same tokens, and which change most. [pure]

1. For every token, the difference of a neuron's activation in the two models, squared.
2. Sums over tokens of all texts, in float64: one number a neuron, however many tokens there are.
3. The change score is the root of the mean, in units of activation.
4. All neurons are ranked together, the last layer's too; no layer is normalised.

Source: Chen et al. 2025, eq. 3, arXiv:2406.14144. The published code leaves layer 31 out; we leave none out.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import CompletionMissing, NeuronsMissing


@final
class ChangeSums:
    """Running sums behind the change scores of [n_layers, d_mlp] neurons; memory does not grow with the texts."""

    def __init__(self, n_layers: int, d_mlp: int, *, device: torch.device | str = "cpu") -> None:
        self.squares: Float[Tensor, "n_layers d_mlp"] = torch.zeros(n_layers, d_mlp, dtype=torch.float64, device=device)
        self.n_positions = 0
        """Tokens counted so far."""

    def add(
        self,
        layer: int,
        first: Float[Tensor, "batch seq d_mlp"],
        second: Float[Tensor, "batch seq d_mlp"],
        chosen: Bool[Tensor, "batch seq"],
    ) -> None:
        """Adds one layer's activations at the chosen tokens."""
        gap = first[chosen.to(first.device)].double() - second[chosen.to(second.device)].to(first.device).double()
        self.squares[layer] += gap.square().sum(dim=0).to(self.squares.device)

    def count(self, chosen: Bool[Tensor, "batch seq"]) -> None:
        """Counts the chosen tokens of a batch; once, after its layers were added."""
        self.n_positions += int(chosen.sum())

    def scores(self) -> Float[Tensor, "n_layers d_mlp"]:
        """Root-mean-square change of every neuron, float64.

        Raises:
            CompletionMissing: no token was counted.
        """
        if self.n_positions == 0:
            raise CompletionMissing("change scores need at least one completion token; the texts hold none.")
        return (self.squares / self.n_positions).sqrt()


def rank_neurons(scores: Float[Tensor, "n_layers d_mlp"], layers: Sequence[int]) -> Int[Tensor, "neurons 2"]:
    """Layer and index of every neuron of these layers, the most changed first (ties: layer, then index).

    Raises:
        NeuronsMissing: there is no layer.
    """
    if not layers:
        raise NeuronsMissing("no layer has neurons to rank: every MLP of the model is a mixture of experts.")
    chosen = scores[sorted(layers)].cpu()
    order = chosen.flatten().argsort(descending=True, stable=True)
    where = torch.tensor(sorted(layers))[order // chosen.shape[1]]
    return torch.stack([where, order % chosen.shape[1]], dim=1)


def layer_counts(neurons: Int[Tensor, "neurons 2"], n_layers: int) -> tuple[int, ...]:
    """How many of the neurons each layer has."""
    return tuple(torch.bincount(neurons[:, 0], minlength=n_layers).tolist())


def random_neurons(like: Int[Tensor, "neurons 2"], d_mlp: int, generator: torch.Generator) -> Int[Tensor, "neurons 2"]:
    """As many random neurons in each layer as `like` has there, drawn from all neurons of the layer."""
    rows = []
    for layer, count in zip(*torch.unique(like[:, 0], return_counts=True), strict=True):
        index = torch.randperm(d_mlp, generator=generator)[: int(count)].sort().values
        rows.append(torch.stack([layer.expand_as(index), index], dim=1))
    return torch.cat(rows) if rows else like


def neuron_mask(neurons: Int[Tensor, "neurons 2"], n_layers: int, d_mlp: int) -> Bool[Tensor, "n_layers d_mlp"]:
    """True at the neurons.

    Raises:
        NeuronsMissing: a neuron lies beyond the model's layers or their width.
    """
    mask = torch.zeros(n_layers, d_mlp, dtype=torch.bool)
    for row in neurons[((neurons < 0) | (neurons >= torch.tensor([n_layers, d_mlp]))).any(dim=1)][:1].tolist():
        raise NeuronsMissing(f"neuron L{row[0]}.N{row[1]}: the model has {n_layers} layers of {d_mlp} neurons each.")
    mask[neurons[:, 0], neurons[:, 1]] = True
    return mask


def common_neurons(one: Int[Tensor, "neurons 2"], other: Int[Tensor, "neurons 2"]) -> Int[Tensor, "neurons 2"]:
    """Neurons that are in both, in the order of the first."""
    known = {tuple(row) for row in other.tolist()}
    return one[torch.tensor([tuple(row) in known for row in one.tolist()], dtype=torch.bool)]


def rank_correlation(
    one: Float[Tensor, " n"], other: Float[Tensor, " n"], n_resamples: int, generator: torch.Generator
) -> tuple[float, Float[Tensor, " resamples"]]:
    """Spearman's correlation (ties: mean rank), and its values with neurons drawn anew, their ranks kept."""
    ranks = torch.stack([_mean_ranks(one), _mean_ranks(other)])
    drawn = torch.stack(
        [_pearson(ranks[:, torch.randint(0, len(one), (len(one),), generator=generator)]) for _ in range(n_resamples)]
    )
    return float(_pearson(ranks)), drawn


def _mean_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(dim=0).double() - (counts - 1) / 2
    return means[place]


def _pearson(pair: Float[Tensor, "2 n"]) -> Tensor:
    found: Tensor = torch.corrcoef(pair)[0, 1]
    return found
