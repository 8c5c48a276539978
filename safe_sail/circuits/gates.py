"""Gates: differentiable membership of units in a circuit, from float32 logits z to values in 0..1.

1. straight-through: 1 where sigmoid(z / T) > 1/2, with the gradient of the sigmoid.
2. hard-concrete: a stretched, clamped sigmoid with noise, whose chance of not being 0 has a closed form.
3. top-k: 1 at the k largest logits of each kind, with the gradient passed straight through: a circuit of that size.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

GateKind = Literal["straight_through", "hard_concrete", "top_k"]

BETA: Final = 2 / 3
GAMMA, ZETA = -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution, as Louizos et al. 2018, section 4.1."""


def straight_through(logits: Float[Tensor, " units"], temperature: float = 1.0) -> Float[Tensor, " units"]:
    """1 where sigmoid(z / T) exceeds one half, else 0; the gradient is that of the sigmoid, s (1 - s) / T.

    Source: Yu et al. 2026, arXiv:2603.23268, as implemented by its authors (T = 1). Logits stay float32 here: in
    bfloat16 most steps of a decaying learning rate would be rounded away.
    """
    soft = torch.sigmoid(logits / temperature)
    # exactly 0 or 1: hard - soft + soft would leave the rounding of the sum
    return _straight((soft > 0.5).to(soft), soft)


def top_k(logits: Float[Tensor, " units"], sizes: Sequence[tuple[slice, int]]) -> Float[Tensor, " units"]:
    """1 at the largest `k` logits of each slice (ties: the lower place), else 0; the gradient passes straight through.

    Source: Ramanujan et al. 2020, section 3 (edge-popup), arXiv:1911.13299.
    """
    hard = torch.zeros_like(logits)
    for places, k in sizes:
        order = torch.argsort(logits.detach()[places], descending=True, stable=True)
        hard[places][order[:k]] = 1
    return _straight(hard, logits)


def _straight(hard: Tensor, soft: Tensor) -> Tensor:
    found: Tensor = _StraightThrough.apply(hard, soft)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    """The first argument's value with the second's gradient."""

    @staticmethod
    def forward(hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing needs to be kept."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def hard_concrete(
    logits: Float[Tensor, " units"], generator: torch.Generator, beta: float = BETA
) -> Float[Tensor, " units"]:
    """A sample of each gate: min(1, max(0, s (zeta - gamma) + gamma)), s = sigmoid((log u - log(1 - u) + z) / beta).

    Source: Louizos, Welling, Kingma 2018, eq. 10-11, arXiv:1712.01312.
    """
    u = torch.rand(logits.shape, generator=generator, device=generator.device).to(logits)
    u = u.clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((u.log() - (1 - u).log() + logits) / beta)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def expected_l0(logits: Float[Tensor, " units"], beta: float = BETA) -> Float[Tensor, " units"]:
    """Chance that each hard-concrete gate is not 0: sigmoid(z - beta log(-gamma / zeta)).

    Source: the same, eq. 12.
    """
    return torch.sigmoid(logits - beta * math.log(-GAMMA / ZETA))


def probabilities(logits: Float[Tensor, " units"], kind: GateKind, temperature: float = 1.0) -> Float[Tensor, " units"]:
    """Gate probability of each unit: the sigmoid, or the expected L0 of a hard-concrete gate."""
    return expected_l0(logits) if kind == "hard_concrete" else torch.sigmoid(logits / temperature)


def members(
    logits: Float[Tensor, " units"], kind: GateKind, sizes: Sequence[tuple[slice, int]] | None = None
) -> Float[Tensor, " units"]:
    """1 for each unit that the finished gates put into the circuit, else 0, without noise or gradient.

    With `sizes` the largest logits of each slice are read out, whatever the gate. A hard-concrete gate is in where its
    value without noise, min(1, max(0, sigmoid(z) (zeta - gamma) + gamma)), exceeds one half: where z > 0.
    """
    if sizes is not None:
        return top_k(logits.detach(), sizes)
    return (logits.detach() > 0).to(logits)
