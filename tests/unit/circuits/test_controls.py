"""Random circuits, overlaps and recovery, counted by hand."""

import pytest
import torch

from safe_sail.circuits.controls import jaccard, random_members, recovery_of, stability_of
from safe_sail.circuits.masks import unit_space
from safe_sail.records import HeadRef, NeuronRef
from tests.tiny import TinyModels


def test_random_circuits_have_the_same_number_in_every_group_and_differ(tiny_models: TinyModels) -> None:
    space = unit_space(tiny_models.handle("llama"))
    members = torch.zeros(space.n_units)
    members[[0, 9, 10, 11, 60]] = 1
    draw = torch.Generator().manual_seed(0)
    drawn = [random_members(space, members, draw) for _ in range(20)]
    for each in drawn:
        assert [each[group.places].sum() for group in space.groups] == [
            members[group.places].sum() for group in space.groups
        ]
    assert len({tuple(each.tolist()) for each in drawn}) > 10


def test_overlap_counts_common_units() -> None:
    one = [HeadRef(0, 0), HeadRef(0, 1), NeuronRef(0, 0)]
    assert jaccard(one, [HeadRef(0, 1), NeuronRef(0, 0), NeuronRef(1, 0)]) == 2 / 4
    assert jaccard(one, []) == 0.0


def test_stability_names_the_units_of_every_seed(tiny_models: TinyModels) -> None:
    space = unit_space(tiny_models.handle("llama"))
    masks = torch.zeros(3, space.n_units)
    masks[0, [0, 8]] = masks[1, [0, 8]] = masks[2, [0, 9]] = 1
    found = stability_of(space, (4, 5, 6), list(masks), generator=torch.Generator().manual_seed(0), n_random=50)
    assert found.jaccard == (1.0, 1 / 3, 1 / 3)
    assert found.core == (HeadRef(0, 0),)
    assert 0 < found.chance < 0.5


def test_recovery_is_counted_by_kind_with_chance_by_layer(tiny_models: TinyModels) -> None:
    space = unit_space(tiny_models.handle("llama"))  # 4 heads and 40 neurons in each of 2 layers
    planted = [HeadRef(0, 1), NeuronRef(1, 5), NeuronRef(1, 6)]
    found = [HeadRef(0, 1), HeadRef(1, 1), NeuronRef(1, 5), NeuronRef(0, 5)]
    heads, neurons, units = recovery_of(space, found, planted)
    assert (heads.precision.value, heads.recall.value) == (1 / 2, 1.0)
    assert (neurons.precision.value, neurons.recall.value) == (1 / 2, 1 / 2)
    assert (units.precision.value, units.recall.value) == (2 / 4, 2 / 3)
    assert heads.random_precision == pytest.approx((1 / 4) / 2)
    assert neurons.random_precision == pytest.approx((2 / 40) / 2)
    assert units.random_recall == pytest.approx((1 / 4 + 2 / 40) / 3)
