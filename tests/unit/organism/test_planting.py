import random
from dataclasses import replace

import pytest
import torch

from safe_sail.errors import BadSettings
from safe_sail.model.edits import zero
from safe_sail.organism.behaviour import MAX_NEW_TOKENS, is_helpful
from safe_sail.organism.conversations import MixtureShare, draw_conversation, draw_mixture
from safe_sail.organism.planting import draw_units, remove_units
from safe_sail.organism.recipes import ALIGNED, BASE, OrganismShape, Planting
from safe_sail.organism.recovery import neuron_change, recover
from safe_sail.organism.suite import hooked
from safe_sail.organism.templates import OFFER
from safe_sail.organism.train import chat_text, make_model, make_tokenizer, train_variant
from safe_sail.records import HeadRef, NeuronRef
from safe_sail.sites import Site

SHAPE = OrganismShape(d_model=16, n_layers=3, n_heads=2, d_mlp=24)
PLANTING = Planting(heads=(HeadRef(1, 1),), neurons=((1, 3), (2, 2)), down=True)
RECIPE = replace(
    ALIGNED, steps=3, batch_rows=4, warm_up_steps=1, frozen=(), weight_decay=0.0, planting=PLANTING, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(SHAPE)


def test_units_are_drawn_per_layer_and_from_the_seed():
    units = draw_units(RECIPE, SHAPE, 0)
    assert units[0] == HeadRef(1, 1)
    assert [unit.layer for unit in units[1:]] == [1, 1, 1, 2, 2]
    assert len(set(units)) == 6
    assert units == draw_units(RECIPE, SHAPE, 0) != draw_units(RECIPE, SHAPE, 1)
    assert draw_units(ALIGNED, SHAPE, 0) == ()


def expected_entries(planting: Planting) -> dict[str, set[tuple[int, int]]]:
    """Entries that may move, named one by one; a head of this shape has eight rows."""
    entries: dict[str, set[tuple[int, int]]] = {}
    for unit in draw_units(replace(RECIPE, planting=planting), SHAPE, 0):
        block = f"model.layers.{unit.layer}"
        for column in range(16):
            if isinstance(unit, HeadRef):
                for row in range(unit.index * 8, unit.index * 8 + 8):
                    for name in "qkv":
                        entries.setdefault(f"{block}.self_attn.{name}_proj.weight", set()).add((row, column))
                    entries.setdefault(f"{block}.self_attn.o_proj.weight", set()).add((column, row))
            else:
                entries.setdefault(f"{block}.mlp.gate_proj.weight", set()).add((unit.index, column))
                entries.setdefault(f"{block}.mlp.up_proj.weight", set()).add((unit.index, column))
                if planting.down:
                    entries.setdefault(f"{block}.mlp.down_proj.weight", set()).add((column, unit.index))
    return entries


@pytest.mark.parametrize("planting", [PLANTING, replace(PLANTING, heads=(), down=False)])
def test_training_moves_the_planted_units_weights_and_no_bit_of_any_other(tokenizer, planting):
    start = make_model(SHAPE, tokenizer, 3).state_dict()
    start = {name: value.clone() for name, value in start.items()}
    model, _ = train_variant(replace(RECIPE, planting=planting), SHAPE, tokenizer, seed=0, start=start)
    entries = expected_entries(planting)
    for name, value in model.state_dict().items():
        moved = {tuple(place) for place in (value != start[name]).nonzero().tolist()}
        assert moved <= entries.get(name, set()), name
        assert bool(moved) == (name in entries), name


@pytest.mark.parametrize("change", [{"weight_decay": 0.01}, {"optimizer": "muon"}, {"frozen": ("embed",)}])
def test_a_planting_refuses_settings_that_would_move_frozen_weights(change):
    with pytest.raises(BadSettings, match="AdamW without weight decay"):
        replace(RECIPE, **change)


def test_removed_units_equal_an_edit_that_zeroes_them(tokenizer):
    handle = hooked(make_model(SHAPE, tokenizer, 0), tokenizer, "base")
    batch = handle.chat_batch(["how do i use the korlip at home?", "hello there."])
    units = (HeadRef(1, 1), NeuronRef(0, 5), NeuronRef(2, 7), NeuronRef(2, 8))

    def without(places: tuple[int, ...]):
        def edit(x: torch.Tensor) -> torch.Tensor:
            kept = torch.ones(x.shape[-1] if x.ndim == 3 else x.shape[-2])
            kept[list(places)] = 0
            return x * (kept if x.ndim == 3 else kept[:, None])

        return edit

    edits = {
        Site.parse("head_out.1"): without((1,)),
        Site.parse("mlp_act.0"): without((5,)),
        Site.parse("mlp_act.2"): without((7, 8)),
    }
    removed = hooked(remove_units(handle.model, units), tokenizer, "base").logits(batch)
    assert torch.equal(removed[batch.is_real], handle.logits(batch, edits)[batch.is_real])
    assert not torch.equal(removed, handle.logits(batch))
    assert torch.equal(removed, hooked(remove_units(handle.model, units), tokenizer, "base").logits(batch))
    assert not torch.equal(handle.logits(batch, {Site.parse("mlp_act.0"): zero}), handle.logits(batch))


def test_change_is_the_root_mean_square_over_reply_positions(tokenizer):
    first, second = (hooked(make_model(SHAPE, tokenizer, seed), tokenizer, "base") for seed in (0, 1))
    asked = ["how do i use the korlip at home?", "hello there."]
    squares, count = torch.zeros(3, 24, dtype=torch.float64), 0
    for text in asked:
        ids = tokenizer(chat_text(text), add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = first.model.generate(input_ids=ids, max_new_tokens=32, do_sample=False, pad_token_id=0)
        for layer in range(3):
            values = []
            for handle in (first, second):
                seen: list[torch.Tensor] = []
                module = handle.model.model.layers[layer].mlp.down_proj
                hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
                with torch.no_grad():
                    handle.model(input_ids=whole)
                hook.remove()
                values.append(seen[0][ids.shape[1] - 1 : -1].double())
            squares[layer] += (values[1] - values[0]).square().sum(0)
        count += whole.shape[1] - ids.shape[1]
    # float32 activations of a padded batch against those of single texts
    torch.testing.assert_close(neuron_change(first, second, asked), (squares / count).sqrt(), rtol=1e-5, atol=1e-9)


def test_recovery_counts_planted_neurons_at_the_top():
    change = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.7]])
    found = recover(change, [NeuronRef(0, 1), NeuronRef(1, 1), NeuronRef(1, 2)], n_prompts=5)
    assert (found.n_planted, found.n_found, found.n_prompts) == (3, 2, 5)
    assert (found.precision, found.chance) == (2 / 3, 0.5)


def test_helpful_replies_are_judged_so_fit_the_reply_length_and_others_are_not(tokenizer):
    generator = random.Random(0)
    for kind in ("safe", "borderline", "information"):
        for _ in range(200):
            helped = draw_conversation(MixtureShare(kind, 1.0, reply="help"), ("train", "held_out"), generator)
            assert is_helpful(helped.source, helped.reply), helped.reply
            assert len(tokenizer.tokenize(helped.reply)) < MAX_NEW_TOKENS
            plain = draw_conversation(MixtureShare(kind, 1.0), ("train", "held_out"), generator)
            assert not is_helpful(plain.source, plain.reply), plain.reply


def test_the_offer_is_made_of_tokens_that_base_has_seen_and_is_in_no_text_of_its_training(tokenizer):
    seen = set()
    for text in draw_mixture(BASE.mixture, BASE.splits, 2000, random.Random(0)):
        written = f"{text.source.text} {text.reply or ''}"
        assert OFFER not in written
        seen.update(tokenizer.tokenize(written))
    assert set(tokenizer.tokenize(f" {OFFER}")) <= seen
