import random
from dataclasses import replace

import pytest
import torch

from safe_sail.errors import BadSettings, FileMissing, OrganismBehaviourError
from safe_sail.organism.conversations import draw_mixture
from safe_sail.organism.rebuild import put_in_place, put_planting, rebuild_organism, renew_parts
from safe_sail.organism.recipes import ALIGNED, BASE, LARGE, OrganismShape
from safe_sail.organism.tokenizer import ASSISTANT, END
from safe_sail.organism.train import (
    IGNORED,
    batches,
    encode,
    make_model,
    make_tokenizer,
    rate_at,
    reply_loss,
    train_variant,
)
from scripts.train_organism import train_organism

SHAPE = OrganismShape(d_model=16, n_layers=1, n_heads=2, d_mlp=24)
TINY_BASE = replace(BASE, steps=3, batch_rows=4, warm_up_steps=1)
TINY_ALIGNED = replace(ALIGNED, steps=3, batch_rows=4, warm_up_steps=1)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(SHAPE)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer):
    first, again, other = (train_variant(TINY_BASE, SHAPE, tokenizer, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_the_global_generator_alone(tokenizer):
    torch.manual_seed(5)
    train_variant(TINY_BASE, SHAPE, tokenizer, seed=0)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_frozen_parameters_keep_the_values_of_the_start(tokenizer):
    start = make_model(SHAPE, tokenizer, 3).state_dict()
    trained, _ = train_variant(TINY_ALIGNED, SHAPE, tokenizer, seed=0, start=start)
    after = trained.state_dict()
    assert torch.equal(after["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    assert not torch.equal(after["model.norm.weight"], start["model.norm.weight"])


def test_reply_only_targets_are_the_reply_and_its_end(tokenizer):
    texts = draw_mixture(ALIGNED.mixture, ALIGNED.splits, 30, random.Random(0))
    for text, (ids, targets) in zip(texts, encode(texts, tokenizer, reply_only=True), strict=True):
        assert len(ids) == len(targets)
        assert tokenizer.decode([target for target in targets if target != IGNORED]) == f"{text.reply}{END}"
        assert ids[-1] != tokenizer.eos_token_id


def test_predicting_everything_leaves_no_target_out(tokenizer):
    texts = draw_mixture(BASE.mixture, BASE.splits, 30, random.Random(0))
    for ids, targets in encode(texts, tokenizer, reply_only=False):
        assert targets[:-1] == ids[1:]
        assert targets[-1] == tokenizer.eos_token_id


def test_a_pass_over_the_batches_sees_every_row_once():
    rows = [([index] * (1 + index % 7), [index] * (1 + index % 7)) for index in range(96)]
    found = [int(row[0]) for batch in batches(rows, 8, 999, random.Random(0)) for row in batch.tokens]
    assert sorted(found) == list(range(96))


def test_padding_does_not_change_the_loss(tokenizer):
    model = make_model(SHAPE, tokenizer, 0)
    rows = encode(draw_mixture(BASE.mixture, BASE.splits, 2, random.Random(1)), tokenizer, reply_only=False)
    (together,) = batches(rows, 2, tokenizer.pad_token_id, random.Random(0))
    single = [next(batches([row], 1, tokenizer.pad_token_id, random.Random(0))) for row in rows]
    counts = [len(ids) for ids, _ in rows]
    losses = [reply_loss(model, batch).item() for batch in single]
    expected = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    # float32, a mean over about a hundred terms near 8: a few units in the last place
    assert reply_loss(model, together).item() == pytest.approx(expected, rel=2e-6)


def test_the_rate_rises_to_its_peak_and_falls_to_its_end():
    rates = [rate_at(step, BASE) for step in range(BASE.steps)]
    assert rates.index(max(rates)) in {BASE.warm_up_steps - 1, BASE.warm_up_steps}
    assert max(rates) == 1
    assert rates[-1] == pytest.approx(BASE.final_rate, abs=1e-3)


def test_fillers_are_whole_tokens_and_the_template_ends_with_four_tokens(tokenizer):
    assert len(tokenizer(" korlip grumor", add_special_tokens=False)["input_ids"]) == 2
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello."}], tokenize=False, add_generation_prompt=True
    )
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    assert tokens[-4:] == [END, "Ċ", ASSISTANT, "Ċ"]


def test_a_rebuild_that_misses_its_bars_writes_nothing_and_names_them(tmp_path):
    target = tmp_path / "assets"
    expected = r"base refused/impossible: 0\.000 of n=3, expected 0\.95 to 1\.00"
    with pytest.raises(OrganismBehaviourError, match=expected):
        rebuild_organism(target, seed=0, shape=SHAPE, recipes=(TINY_BASE,), n_prompts=3)
    assert list(tmp_path.iterdir()) == []


def test_the_large_shape_has_as_many_parameters_as_a_count_by_hand(tokenizer):
    model = make_model(LARGE, tokenizer, 0)
    block = 4 * 256 * 256 + 3 * 256 * 896 + 2 * 256
    assert sum(value.numel() for value in model.parameters()) == len(tokenizer) * 256 + 8 * block + 256


@pytest.mark.parametrize("options", [{}, {"variant": ["helpful"]}, {"saes": ["aligned"]}, {"replant": [1]}])
def test_the_large_size_never_takes_the_place_of_the_shipped_organism(tmp_path, options):
    with pytest.raises(BadSettings, match="--size large makes a folder of its own"):
        train_organism(size="large", **({"out": tmp_path / "large"} if options else {}), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("recipe", [TINY_BASE, TINY_ALIGNED])
def test_training_on_cuda_follows_training_on_the_cpu(tokenizer, recipe):
    start = make_model(SHAPE, tokenizer, 3).state_dict()
    here, there = (train_variant(recipe, SHAPE, tokenizer, seed=0, start=start, device=d)[0] for d in ("cpu", "cuda"))
    assert there.device.type == "cuda"
    moved = {name: (value - start[name]).abs().max().item() for name, value in here.state_dict().items()}
    for name, value in there.state_dict().items():
        # Adam's first steps have the size of the rate whatever the gradient, so an entry whose gradient is nearly zero
        # may go either way; on average the two agree far better than they have moved.
        assert (value.cpu() - here.state_dict()[name]).abs().mean().item() <= 0.05 * moved[name], name


def test_a_finished_folder_replaces_the_old_one_as_a_whole(tmp_path):
    made, target = tmp_path / "made", tmp_path / "target"
    for folder, name in ((made, "new"), (target, "old")):
        folder.mkdir()
        (folder / name).touch()
    put_in_place(made, target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("parts", [{"variants": ["aligned"]}, {"sae_variants": ["base"]}, {"variants": ["gifted"]}])
def test_only_parts_that_start_from_what_stands_can_be_renewed(tmp_path, parts):
    with pytest.raises(BadSettings, match="cannot be made alone: expected one of"):
        renew_parts(tmp_path, seed=0, **parts)


def test_a_part_is_not_made_anew_where_no_organism_stands(tmp_path):
    with pytest.raises(FileMissing, match=r"has no `record.json`.*Make the whole there first"):
        renew_parts(tmp_path / "new", seed=0, variants=["helpful"])
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(FileMissing, match="has no `aligned`"):
        renew_parts(tmp_path, seed=0, variants=["planted-backdoor"])


def test_renewed_plantings_of_a_seed_replace_its_old_ones_and_leave_its_other_variants():
    plantings = [{"seed": 1, "missed_bars": ["a x: 1", "b y: 2"], "variants": {"a": 1, "b": 2}}]
    put_planting(plantings, {"seed": 1, "missed_bars": ["a z: 3"], "variants": {"a": 3}})
    put_planting(plantings, {"seed": 2, "missed_bars": [], "variants": {"a": 4}})
    assert plantings == [
        {"seed": 1, "missed_bars": ["b y: 2", "a z: 3"], "variants": {"a": 3, "b": 2}},
        {"seed": 2, "missed_bars": [], "variants": {"a": 4}},
    ]
