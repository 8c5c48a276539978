"""The planted variants differ from their start in the planted units alone, which carry the whole difference."""

import json

import pytest
import torch
from safetensors.torch import load_file

from safe_sail.errors import FileMissing
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import TokenBatch
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import ORGANISM_VARIANTS, organism_path, organism_record, planted_units
from safe_sail.records import HeadRef, NeuronRef
from safe_sail.sites import Site, SiteKind

PLANTED = [name for name in ORGANISM_VARIANTS if name.startswith("planted-")]


def start_of(variant: str) -> str:
    return json.loads((organism_path(variant) / "planted.json").read_text(encoding="utf-8"))["start"]


def handle(variant: str) -> HookedModel:
    return load_model(organism_path(variant), device="cpu", dtype=torch.float32, model_id=f"organism-{variant}")


def replies(model: HookedModel, n: int) -> TokenBatch:
    """Harmful and safe prompts with the model's own replies."""
    asked = model.chat_batch([text.text for kind in ("harmful", "safe") for text in prompts(kind, "held_out", n, 5)])
    new = model.generate(asked, 24)
    real = torch.cat([asked.is_real, new != model.tokenizer.pad_token_id], 1)
    return TokenBatch(torch.cat([asked.token_ids, new], 1), real, asked.source_ids)


@pytest.mark.parametrize("variant", PLANTED)
def test_the_stored_weights_differ_from_the_start_in_the_planted_units_alone(variant):
    stored = load_file(organism_path(variant) / "model.safetensors")
    start = load_file(organism_path(start_of(variant)) / "model.safetensors")
    d_head = 20
    moved = set()
    for name, value in stored.items():
        for row, column in (value.view(torch.int16) != start[name].view(torch.int16)).nonzero().tolist():
            layer = int(name.split(".")[2])
            if name.endswith(("gate_proj.weight", "up_proj.weight")):
                moved.add(NeuronRef(layer, row))
            elif name.endswith("down_proj.weight"):
                moved.add(NeuronRef(layer, column))
            else:
                moved.add(HeadRef(layer, (column if "o_proj" in name else row) // d_head))
    assert moved == set(planted_units(variant))


@pytest.mark.parametrize("variant", PLANTED)
def test_patching_the_planted_units_into_the_start_gives_the_variant(variant):
    planted, start = handle(variant), handle(start_of(variant))
    batch = replies(planted, 16)
    sites = sorted({unit.site for unit in planted_units(variant)})
    values = planted.capture(batch, sites)

    def patch(site: Site) -> Edit:
        axis = -2 if site.kind is SiteKind.HEAD_OUT else -1
        places = torch.tensor([unit.index for unit in planted_units(variant) if unit.site == site])
        return lambda x: x.index_copy(axis % x.ndim, places, values[site].index_select(axis, places))

    wanted = planted.logits(batch)[batch.is_real]
    patched = start.logits(batch, {site: patch(site) for site in sites})[batch.is_real]
    unpatched = start.logits(batch)[batch.is_real]
    assert torch.equal(patched.argmax(-1), wanted.argmax(-1))
    # The same float32 sums in the same order, but for kernels that depend on the machine: logits reach about 20.
    torch.testing.assert_close(patched, wanted, rtol=0, atol=1e-3)
    assert (unpatched.argmax(-1) != wanted.argmax(-1)).float().mean() > 0.02


@pytest.mark.parametrize("variant", PLANTED)
def test_the_record_names_the_planted_units(variant):
    assert organism_record()["variants"][variant]["units"] == [str(unit) for unit in planted_units(variant)]


def test_a_variant_without_planted_units_is_refused():
    with pytest.raises(FileMissing, match="planted-neurons"):
        planted_units("base")
    with pytest.raises(FileMissing, match="expected one of base"):
        planted_units("planted")
