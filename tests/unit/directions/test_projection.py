"""Algebra of removing and adding directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_sail.directions import projection
from safe_sail.errors import DirectionDegenerate


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_ablation_is_idempotent_and_leaves_nothing_along_the_span(seed: int, rank: int):
    directions, x = noise(rank, 12, seed=seed), noise(3, 5, 12, seed=seed + 1)
    once = projection.ablate(x, projection.orthonormal_basis(directions))
    assert (once @ directions.T).abs().max() < 1e-12 * directions.norm() * x.norm()
    torch.testing.assert_close(projection.ablate(once, projection.orthonormal_basis(directions)), once)
    assert (once - x).abs().max() > 0


def test_ablation_turns_with_the_space():
    turn = torch.linalg.qr(noise(12, 12, seed=4)).Q
    directions, x = noise(2, 12, seed=1), noise(7, 12, seed=2)
    turned = projection.ablate(x @ turn, projection.orthonormal_basis(directions @ turn))
    torch.testing.assert_close(turned, projection.ablate(x, projection.orthonormal_basis(directions)) @ turn)


def test_one_direction_is_the_formula_of_the_paper():
    r, x = noise(12, seed=1), noise(7, 12, seed=2)
    hat = r / r.norm()
    expected = torch.stack([row - hat * float(hat @ row) for row in x])
    torch.testing.assert_close(projection.ablate(x, projection.orthonormal_basis(r[None])), expected)


def test_rows_of_a_batch_each_lose_their_own_direction():
    bases = torch.stack([projection.orthonormal_basis(noise(2, 12, seed=seed)) for seed in (1, 3, 5)])
    x = noise(3, 5, 12, seed=2)
    together = projection.ablate_per_row(x, bases)
    for index in range(3):
        torch.testing.assert_close(together[index], projection.ablate(x[index], bases[index]))


def test_rows_of_a_batch_each_gain_their_own_direction():
    directions, x = noise(3, 12, seed=1), noise(3, 5, 12, seed=2)
    together = projection.add_per_row(x, directions)
    for index in range(3):
        torch.testing.assert_close(together[index], projection.add(x[index], directions[index], 1.0))
    torch.testing.assert_close(projection.add(together[0], directions[0], -1.0), x[0])


def test_editing_the_matrix_is_ablating_its_output():
    matrix, basis, inputs = (
        noise(9, 12, seed=1),
        projection.orthonormal_basis(noise(2, 12, seed=3)),
        noise(4, 9, seed=5),
    )
    torch.testing.assert_close(
        inputs @ projection.orthogonalise_rows(matrix, basis), projection.ablate(inputs @ matrix, basis)
    )


def test_bfloat16_keeps_its_dtype_and_loses_the_component_to_rounding():
    x, direction = noise(50, 12).to(torch.bfloat16), noise(1, 12, seed=3)
    basis = projection.orthonormal_basis(direction)
    once = projection.ablate(x, basis)
    assert once.dtype == torch.bfloat16
    # Each of 12 entries is rounded by at most half of bfloat16's eps of 2**-7 of its size.
    bound = 2.0**-8 * x.double().abs().sum(-1).max() * basis.abs().max()
    assert (once.double() @ basis.T).abs().max() <= bound


def test_the_basis_keeps_the_order_of_the_directions():
    directions = noise(3, 12)
    basis = projection.orthonormal_basis(directions)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(basis[0], directions[0] / directions[0].norm())
    assert projection.cosine(directions[1:2], basis[1])[0] > 0
    assert (directions[1] @ basis[2]).abs() < 1e-12


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(1, 4),
        torch.tensor([[1.0, float("nan"), 0.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0]]),
        torch.ones(0, 4),
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["zero", "nan", "dependent", "none", "more than the space holds"],
)
def test_what_spans_no_direction_is_refused(rows: torch.Tensor):
    with pytest.raises(DirectionDegenerate):
        projection.orthonormal_basis(rows)


def test_random_directions_have_the_asked_length_and_no_preferred_side():
    drawn = projection.random_directions(2000, 16, 3.5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.norm(dim=-1), torch.full((2000,), 3.5, dtype=torch.float64))
    # The mean of 2000 such vectors has length 3.5 / sqrt(2000) = 0.078.
    assert drawn.mean(0).norm() < 0.2


def test_cosine_with_a_zero_vector_is_zero():
    found = projection.cosine(torch.stack([torch.zeros(4), torch.tensor([3.0, 4, 0, 0])]), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.6], dtype=torch.float64))
