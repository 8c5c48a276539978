"""The published selection rule on score tables written by hand."""

import math

import pytest

from safe_sail.directions.selection import ScoreRow, SelectionRule, filter_reasons, select
from safe_sail.errors import BadSettings, NoDirection

CODE = SelectionRule(boundaries="code")


def row(
    position: int, layer: int, bypass: float | None, induce: float | None = 1.0, kl: float | None = 0.01
) -> ScoreRow:
    return ScoreRow(position, layer, bypass, induce, kl)


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        pytest.param([row(-1, 2, 0.5), row(-1, 3, -4.0), row(-2, 3, -1.0)], (-1, 3), id="minimum bypass"),
        pytest.param([row(-1, 3, -9.0, induce=-0.1), row(-2, 3, -1.0)], (-2, 3), id="induce filters first"),
        pytest.param([row(-1, 3, -9.0, kl=0.11), row(-2, 3, -1.0)], (-2, 3), id="kl filters first"),
        pytest.param([row(-1, 8, -9.0), row(-1, 7, -1.0)], (-1, 7), id="layer 8 of 10 is late"),
        pytest.param([row(-1, 3, math.nan), row(-1, 4, 2.0)], (-1, 4), id="nan never wins"),
        pytest.param([row(-1, 3, 1.0, kl=math.inf), row(-1, 4, 2.0)], (-1, 4), id="infinite kl"),
        pytest.param(
            [row(-1, 2, -3.0), row(-4, 6, -3.0), row(-4, 5, -3.0)], (-4, 5), id="tie: far position, low layer"
        ),
        pytest.param(
            [row(-1, 3, None, induce=-1.0, kl=None), row(-1, 4, 2.0)], (-1, 4), id="a needless score may lack"
        ),
        pytest.param([row(-1, 3, None), row(-1, 4, 2.0)], (-1, 4), id="an unscored row cannot win"),
    ],
)
def test_the_minimum_bypass_of_what_the_filters_leave_wins(rows: list[ScoreRow], winner: tuple[int, int]):
    found = select(rows, 10)
    assert (found.winner.position, found.winner.layer) == winner
    assert found.order[0] == found.winner
    assert {(r.position, r.layer) for r in found.order} | set(found.reasons) == {(r.position, r.layer) for r in rows}


@pytest.mark.parametrize(
    ("cell", "paper", "code"),
    [
        (row(-1, 3, 0.0, induce=0.0), ("induce",), ()),
        (row(-1, 3, 0.0, kl=0.1), ("kl",), ()),
        (
            row(-1, 25, 0.0),
            (),
            ("layer",),
        ),  # 0.8 * 32 = 25.6: the paper's l < 25.6 keeps 25, the code's l < int(25.6) does not
        (row(-1, 26, 0.0), ("layer",), ("layer",)),
        (row(-1, 24, 0.0), (), ()),
    ],
)
def test_paper_and_code_differ_only_on_the_bounds(cell: ScoreRow, paper: tuple[str, ...], code: tuple[str, ...]):
    assert filter_reasons(cell, 32) == paper
    assert filter_reasons(cell, 32, CODE) == code


@pytest.mark.parametrize("n_layers", [5, 10, 15, 35, 40, 80])
def test_the_layer_bound_is_exact_where_floats_are_not(n_layers: int):
    for rule in (SelectionRule(), CODE):
        assert rule.first_late_layer(n_layers) * 5 == 4 * n_layers


def test_the_order_is_that_of_the_authors_loop():
    """Their loop visits positions from the far end, layers upwards, and sorts stably by descending -bypass."""
    rows = [row(p, layer, float((p * 7 + layer * 3) % 4)) for p in (-3, -2, -1) for layer in range(8)]
    theirs = sorted(((-r.bypass, r) for r in rows if r.bypass is not None), key=lambda pair: pair[0], reverse=True)
    shuffled = rows[::-1]
    assert [r for _, r in theirs] == list(select(shuffled, 10).order)


def test_every_reason_is_named_at_once():
    found = select([row(-1, 9, -9.0, induce=-1.0, kl=3.0), row(-1, 1, 0.0)], 10)
    assert found.reasons == {(-1, 9): ("layer", "induce", "kl")}


def test_the_error_counts_each_filter_and_gives_the_best_values():
    rows = [row(-1, 1, -2.5, induce=-0.25, kl=0.5), row(-1, 2, 1.0, induce=-3.0, kl=0.125), row(-1, 9, -7.0)]
    with pytest.raises(NoDirection) as error:
        select(rows, 10)
    said = str(error.value)
    assert "0 of 3 candidates pass every filter" in said
    assert "1 of 3 candidates lie at layer 8 or later" in said
    assert "2 do not induce refusal above 0 (best before layer 8: -0.25)" in said
    assert "2 change harmless text by a KL of 0.1 or more (best: 0.125)" in said
    assert "the lowest bypass score is -2.5" in said


@pytest.mark.parametrize(
    "rows", [[], [row(-1, 1, 0.0), row(-1, 1, 1.0)], [row(0, 1, 0.0)], [row(-1, 10, 0.0)], [row(-1, -1, 0.0)]]
)
def test_a_malformed_table_is_refused(rows: list[ScoreRow]):
    with pytest.raises(BadSettings):
        select(rows, 10)
