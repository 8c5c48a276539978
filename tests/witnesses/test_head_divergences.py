"""Heads in one pass against the plain loop: one head, one prompt, one pass from the embedding to the end, no batch."""

import pytest
import torch
from scipy import special

from safe_sail.circuits.attribution import circuit_of_heads, head_divergences, rank_heads
from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.reference import collect_baseline
from safe_sail.errors import BadSettings
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels


def plain_loop(handle: HookedModel, text: str, layer: int, head: int, value: torch.Tensor | None) -> float:
    """KL by scipy, with the head's output set by hand."""
    batch = handle.batch([text])

    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, :, head] = 0 if value is None else value[: x.shape[1]]
        return x

    full = handle.logits(batch)[0, -1].double().softmax(-1)
    without = handle.logits(batch, {Site(SiteKind.HEAD_OUT, layer): edit})[0, -1].double().softmax(-1)
    return float(special.rel_entr(full.numpy(), without.numpy()).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_in_one_pass_equal_the_plain_loop(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    found = head_divergences(handle, handle.batch(TEXTS), batch_rows=2, pack_rows=6)
    assert found.shape == (3, handle.dims.n_layers, handle.dims.n_heads)
    for prompt, text in enumerate(TEXTS[:2]):
        for layer in range(handle.dims.n_layers):
            for head in (0, 3):
                expected = plain_loop(handle, text, layer, head, None)
                # logits near one in float32
                assert float(found[prompt, layer, head]) == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert float(found.max()) > 1e-3


def test_means_and_other_texts_replace_heads_as_they_do_in_the_plain_loop(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    space, batch = unit_space(handle, ["heads"]), handle.batch(TEXTS)
    mean = collect_baseline(handle, space, [batch], "mean")
    found = head_divergences(handle, batch, mean, batch_rows=2, pack_rows=6)
    value = mean.values["head_out.1"][2].expand(64, -1)
    assert float(found[2, 1, 2]) == pytest.approx(plain_loop(handle, TEXTS[2], 1, 2, value), rel=1e-3)
    other: Baseline = collect_baseline(handle, space, [batch], "resample").shifted(1)
    found = head_divergences(handle, batch, other, batch_rows=2, pack_rows=6)
    for prompt in range(3):
        source = handle.capture(handle.batch([TEXTS[(prompt + 1) % 3]]), [Site.parse("head_out.1")])
        values = source[Site.parse("head_out.1")][0, :, 2]
        values = torch.cat([values, values[-1:].expand(64, -1)])
        assert float(found[prompt, 1, 2]) == pytest.approx(plain_loop(handle, TEXTS[prompt], 1, 2, values), rel=1e-3)


def test_the_highest_heads_become_a_circuit(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    harmful, harmless = handle.batch(TEXTS), handle.batch(TEXTS[:2])
    scores = rank_heads(handle, harmful, harmless, slug="tiny.ships", generator=torch.Generator().manual_seed(0))
    means = head_divergences(handle, harmful).mean(0)
    order = sorted(((layer, head) for layer in range(2) for head in range(4)), key=lambda at: -float(means[at]))
    assert [(one.head.layer, one.head.index) for one in scores.heads] == order
    assert scores.heads[0].harmful.n == 3
    assert scores.heads[0].harmless.n == 2
    circuit = circuit_of_heads(scores, 3)
    assert set(circuit.units) == {HeadRef(*at) for at in order[:3]}
    assert (circuit.method, circuit.n_heads, circuit.n_neurons) == ("ships", 8, 0)
    for k in (0, 9):
        with pytest.raises(BadSettings, match=f"1 to 8 of them; got {k}"):
            circuit_of_heads(scores, k)
