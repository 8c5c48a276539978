"""Edits as pure functions, against sums written out here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_sail.errors import EditRefused
from safe_sail.model.edits import (
    Edit,
    PositionedEdit,
    Step,
    add,
    apply_edit,
    at_mask,
    at_positions,
    compose,
    identity,
    project_out,
    replace,
    scale,
    where_tokens,
    while_generating,
    zero,
    zero_heads,
    zero_neurons,
)


def values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def step(*lengths: int, is_prefill: bool = True) -> Step:
    """Left-padded rows of these lengths."""
    width = max(lengths)
    real = torch.tensor([[column >= width - length for column in range(width)] for length in lengths])
    return Step((real.long().cumsum(1) - 1).clamp(min=0), real, is_prefill)


EDITS: dict[str, Edit] = {
    "identity": identity,
    "zero": zero,
    "replace": replace(values(8)),
    "add": add(values(8), 2.0),
    "scale": scale(0.3),
    "scale by vector": scale(values(8)),
    "zero_neurons": zero_neurons([1, 7]),
    "zero_heads": zero_heads([0]),
    "project_out": project_out(values(8)),
    "project_out of two": project_out(values(2, 8)),
    "compose": compose(scale(2.0), add(values(8))),
    "at_positions": at_positions([1], zero),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_edit_keeps_shape_dtype_and_its_input(name: str, dtype: torch.dtype) -> None:
    x = values(2, 3, 8, dtype=dtype)
    kept = x.clone()
    y = apply_edit(EDITS[name], x, step(3, 2))
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert torch.equal(x, kept)
    if name not in ("identity", "compose"):
        assert y.data_ptr() != x.data_ptr()


def test_simple_edits_do_what_they_say() -> None:
    x, v = values(2, 3, 8), values(8)
    assert torch.equal(zero(x), torch.zeros(2, 3, 8))
    assert torch.equal(apply_edit(replace(v), x, None)[1, 2], v)
    assert torch.equal(apply_edit(add(v, -2.0), x, None)[1, 2], x[1, 2] - 2 * v)
    assert torch.equal(apply_edit(scale(v), x, None)[0, 1], x[0, 1] * v)
    masked = apply_edit(zero_neurons([0, 5]), x, None)
    assert (masked[..., [0, 5]] == 0).all()
    assert torch.equal(masked[..., [1, 2, 3, 4, 6, 7]], x[..., [1, 2, 3, 4, 6, 7]])
    heads = apply_edit(zero_heads([2]), values(2, 3, 4, 8), None)
    assert (heads[:, :, 2] == 0).all()
    assert torch.equal(heads[:, :, [0, 1, 3]], values(2, 3, 4, 8)[:, :, [0, 1, 3]])
    assert torch.equal(apply_edit(zero_heads([]), x, None), x)


@pytest.mark.parametrize("heads", [[4], [-1], [0, 9]])
def test_absent_heads_and_neurons_are_refused(heads: list[int]) -> None:
    with pytest.raises(EditRefused, match="4 heads"):
        apply_edit(zero_heads(heads), values(2, 3, 4, 8), None)
    with pytest.raises(EditRefused, match="4 neurons"):
        apply_edit(zero_neurons(heads), values(2, 3, 4), None)


def gram_schmidt(x: Tensor, directions: Tensor) -> Tensor:
    basis: list[Tensor] = []
    for row in directions.double():
        for unit in basis:
            row = row - (row @ unit) * unit
        basis.append(row / row.norm())
    y = x.double()
    for unit in basis:
        y = y - (y @ unit)[..., None] * unit
    return y


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_project_out_equals_gram_schmidt_and_is_idempotent(rows: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    directions = size * torch.randn(rows, 8, generator=generator)
    x = torch.randn(2, 3, 8, generator=generator)
    edit = project_out(directions)
    once = apply_edit(edit, x, None)
    # float32 products of unit vectors: a few eps of |x|
    torch.testing.assert_close(once, gram_schmidt(x, directions).float(), atol=5e-6, rtol=0)
    torch.testing.assert_close(apply_edit(edit, once, None), once, atol=2e-6, rtol=0)


def test_project_out_in_bfloat16_leaves_only_the_rounding_of_the_result() -> None:
    direction, x = values(64), values(5, 7, 64, dtype=torch.bfloat16)
    left = apply_edit(project_out(direction), x, None).double() @ (direction / direction.norm()).double()
    # 64 roundings of at most eps/2 of numbers of size one add up like a random walk
    assert left.abs().max() < 64**0.5 * torch.finfo(torch.bfloat16).eps
    assert (x.double() @ direction.double()).abs().max() > 1


@pytest.mark.parametrize(
    "direction",
    [torch.zeros(8), torch.full((8,), float("nan")), torch.ones(2, 8), torch.zeros(0, 8), torch.randn(9, 8)],
)
def test_directions_that_span_less_than_they_say_are_refused(direction: Tensor) -> None:
    with pytest.raises(EditRefused, match="project_out"):
        project_out(direction)


def test_positions_count_from_the_first_real_token() -> None:
    x = values(2, 4, 8)
    y = apply_edit(at_positions([0, 2], zero), x, step(4, 2))
    assert (y[0, [0, 2]] == 0).all()
    assert (y[1, 2] == 0).all()  # the first real token of a row with two tokens of padding
    assert torch.equal(y[0, [1, 3]], x[0, [1, 3]])
    assert torch.equal(y[1, [0, 1, 3]], x[1, [0, 1, 3]])


def test_where_tokens_reaches_heads_and_never_padding() -> None:
    x = values(2, 4, 3, 8)
    y = apply_edit(where_tokens(lambda step: torch.ones_like(step.is_real), zero), x, step(4, 2))
    assert (y[0] == 0).all()
    assert (y[1, 2:] == 0).all()
    assert torch.equal(y[1, :2], x[1, :2])


def test_a_mask_edits_the_prompt_and_not_what_is_generated() -> None:
    x = values(2, 4, 8)
    mask = torch.tensor([[True, False, False, True], [True, True, False, False]])
    y = apply_edit(at_mask(mask, zero), x, step(4, 4))
    assert (y[mask] == 0).all()
    assert torch.equal(y[~mask], x[~mask])
    one = values(2, 1, 8)
    assert torch.equal(apply_edit(at_mask(mask, zero), one, step(1, 1, is_prefill=False)), one)
    with pytest.raises(EditRefused, match=r"\(2, 4\).*\(2, 3\)"):
        apply_edit(at_mask(mask, zero), x[:, :3], step(3, 3))


def test_while_generating_leaves_the_prompt() -> None:
    x = values(2, 1, 8)
    assert torch.equal(apply_edit(while_generating(zero), x, step(1, 1)), x)
    assert (apply_edit(while_generating(zero), x, step(1, 1, is_prefill=False)) == 0).all()


def test_compose_applies_in_order_and_keeps_positions() -> None:
    x = values(2, 3, 8)
    assert torch.equal(apply_edit(compose(add(torch.ones(8)), scale(2.0)), x, None), (x + 1) * 2)
    mixed = compose(at_positions([0], zero), add(torch.ones(8)))
    assert isinstance(mixed, PositionedEdit)
    y = apply_edit(mixed, x, step(3, 3))
    assert (y[:, 0] == 1).all()
    assert torch.equal(y[:, 1:], x[:, 1:] + 1)
    assert torch.equal(apply_edit(compose(), x, None), x)


def test_a_positioned_edit_without_positions_is_refused() -> None:
    with pytest.raises(EditRefused, match="positions"):
        apply_edit(at_positions([0], zero), values(2, 3, 8), None)


def test_a_gate_receives_its_gradient() -> None:
    gate = torch.full((4, 1), 0.5, requires_grad=True)
    x = values(2, 3, 4, 8)
    apply_edit(scale(gate), x, None).sum().backward()
    assert gate.grad is not None
    torch.testing.assert_close(gate.grad[:, 0], x.sum(dim=(0, 1, 3)))
