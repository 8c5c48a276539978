"""The instruction's own tokens: what a concept's words are among."""

import pytest

from safe_sail.model.chat import instruction_mask
from safe_sail.model.tokens import PaddingSide
from tests.tiny import TinyModels


@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_marks_the_instruction_and_nothing_of_the_template(tiny_models: TinyModels, side: PaddingSide):
    model = tiny_models.handle("llama")
    prompts = ["how do i open the gate?", "short", "a rather longer prompt than the others, it is"]
    batch = model.chat_batch(prompts, padding_side=side)
    mask = instruction_mask(batch, model.tokenizer)
    for row, prompt in enumerate(prompts):
        # An instruction token may carry white space that the template puts before it.
        assert model.tokenizer.decode(batch.token_ids[row][mask[row]]).strip() == prompt
    assert int(mask.sum()) < int(batch.is_real.sum())
