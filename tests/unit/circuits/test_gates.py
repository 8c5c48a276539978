"""Gates against their closed forms, sampling, and autograd of the sigmoid written plainly."""

import torch

from safe_sail.circuits import gates


def logits(n: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_straight_through_is_binary_and_has_the_sigmoids_gradient() -> None:
    z = logits()
    value = gates.straight_through(z, temperature=0.7)
    assert set(value.tolist()) == {0.0, 1.0}
    assert torch.equal(value, (z > 0).float())
    value.sum().backward()
    s = torch.sigmoid(z.detach() / 0.7)
    torch.testing.assert_close(z.grad, s * (1 - s) / 0.7)


def test_top_k_keeps_exactly_the_largest_of_each_slice_and_every_unit_learns() -> None:
    z = logits(10)
    value = gates.top_k(z, [(slice(0, 4), 1), (slice(4, 10), 3)])
    assert value[:4].sum() == 1
    assert value[int(z[:4].argmax())] == 1
    assert set((value[4:] == 1).nonzero()[:, 0].tolist()) == set(z[4:].topk(3).indices.tolist())
    (value * torch.arange(10.0)).sum().backward()
    assert torch.equal(z.grad, torch.arange(10.0))


def test_top_k_breaks_ties_by_place() -> None:
    assert gates.top_k(torch.zeros(5), [(slice(0, 5), 2)]).tolist() == [1, 1, 0, 0, 0]


def test_expected_l0_matches_sampling() -> None:
    z = torch.linspace(-4, 4, 9)
    draw = torch.Generator().manual_seed(0)
    n = 20_000
    nonzero = torch.stack([gates.hard_concrete(z, draw) > 0 for _ in range(n)]).double().mean(0)
    # five standard errors of a share at one half
    torch.testing.assert_close(nonzero, gates.expected_l0(z).double(), atol=5 * 0.5 / n**0.5, rtol=0)
    assert gates.expected_l0(z)[0] < 0.1 < 0.9 < gates.expected_l0(z)[-1]


def test_hard_concrete_reaches_both_ends_and_passes_gradient_between() -> None:
    z = torch.zeros(2000, requires_grad=True)
    value = gates.hard_concrete(z, torch.Generator().manual_seed(1))
    assert (value == 0).any()
    assert (value == 1).any()
    value.sum().backward()
    assert z.grad is not None
    inside = (value > 0) & (value < 1)
    assert (z.grad[inside] > 0).all()
    assert (z.grad[~inside] == 0).all()


def test_members_of_a_hard_concrete_gate_are_those_open_without_noise() -> None:
    z = logits()
    plain = (torch.sigmoid(z.detach()) * 1.2 - 0.1).clamp(0, 1)
    assert torch.equal(gates.members(z, "hard_concrete"), (plain > 0.5).float())
