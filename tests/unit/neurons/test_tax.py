"""Safety and helpfulness in one model's neurons: planted overlap is found, and patching across moves both scores."""

import pytest
import torch

from safe_sail.errors import ModelsDiffer, NeuronsMissing
from safe_sail.model import weights
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.scorers import Scorer, reward_scorer
from safe_sail.neurons.tax import Goal, Tax, TaxModels, measure_tax
from safe_sail.settings import NeuronSettings
from tests.tiny import TinyModels

ASKED = [f"{verb} the {thing}" for verb in ("bake", "paint", "mend") for thing in ("bread", "door", "shoe", "kite")]


def moved(tiny_models: TinyModels, rows: range, size: float, seed: int) -> HookedModel:
    """Llama with W_in of some neurons of each layer moved, so that these alone change by themselves."""
    model = tiny_models.fresh("llama")
    model = HookedModel(model.model, model.tokenizer, model.architecture, model_id=f"moved-{seed}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in range(model.dims.n_layers):
            W_in = weights.mlp(model, layer).W_in
            W_in[rows] += size * W_in.std() * torch.randn(W_in[rows].shape, generator=generator)
    return model


def replies_of(model: HookedModel) -> Scorer:
    """1 for what this model replies, 0 for anything else."""
    new = model.generate(model.chat_batch(ASKED), 6)
    own = dict(zip(ASKED, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    return reward_scorer("own", lambda prompt, reply: float(own[prompt] == reply))


def tax_between(base: HookedModel, safety: HookedModel, helpful: HookedModel, share: float = 0.25) -> Tax:
    goals = [Goal(ASKED[:4], ASKED[4:], replies_of(model)) for model in (safety, helpful)]
    settings = NeuronSettings(n_random=2, n_bootstrap=50, max_new_tokens=6, batch_rows=32, tax_share=share)
    return measure_tax(
        TaxModels(base, safety, helpful), *goals, settings, slug="tiny", generator=torch.Generator().manual_seed(0)
    )


def test_neurons_that_both_aims_moved_are_common_and_patching_them_across_trades_one_for_the_other(
    tiny_models: TinyModels,
) -> None:
    safety, helpful = moved(tiny_models, range(10), 3.0, 1), moved(tiny_models, range(10), 3.0, 2)
    tax = tax_between(tiny_models.handle("llama"), safety, helpful).record
    at_quarter = tax.overlaps[-1]
    assert at_quarter.n_neurons == 16
    assert at_quarter.share > at_quarter.chance
    assert tax.spearman.value > 0.3
    assert tax.spearman.n == 80
    into_safety, into_helpful = tax.crosses
    assert (into_safety.first_model, into_helpful.first_model) == ("moved-1", "moved-2")
    assert into_safety.before["safety"].value == into_helpful.before["helpfulness"].value == 1.0
    for cross, own in ((into_safety, "safety"), (into_helpful, "helpfulness")):
        assert cross.n_neurons == tax.n_common <= 20
        assert cross.moved[own].value == pytest.approx(cross.after[own].value - cross.before[own].value)
        assert cross.moved[own].value < 0
        assert cross.random_moved[own].value >= cross.moved[own].value


def test_aims_that_moved_other_neurons_have_fewer_in_common(tiny_models: TinyModels) -> None:
    base, safety = tiny_models.handle("llama"), moved(tiny_models, range(10), 3.0, 1)
    same, other = moved(tiny_models, range(10), 3.0, 2), moved(tiny_models, range(30, 40), 3.0, 2)
    both = [tax_between(base, safety, helpful, 0.5).record for helpful in (same, other)]
    assert both[0].spearman.low > both[1].spearman.high
    assert both[0].overlaps[-1].share > both[1].overlaps[-1].share


def test_nothing_in_common_and_models_of_another_shape_are_said(tiny_models: TinyModels) -> None:
    base, safety = tiny_models.handle("llama"), moved(tiny_models, range(2), 9.0, 1)
    with pytest.raises(NeuronsMissing, match="have none in common"):
        tax_between(base, safety, moved(tiny_models, range(38, 40), 9.0, 2), 0.01)
    with pytest.raises(ModelsDiffer, match="MistralForCausalLM"):
        tax_between(base, safety, tiny_models.handle("mistral"))
