"""Causal effects by a language model that `transformers serve` answers for: another program's HTTP, template, sampling.

The served judge is a tiny model that knows by heart what to say of each reply; the searched pair are tiny models too.
"""

import json
from pathlib import Path

import pytest

from safe_sail.evaluation.llm_judge import Said, label_request
from safe_sail.llm.exchange import Message
from safe_sail.model.handle import HookedModel
from scripts.find_safety_neurons import find_safety_neurons
from tests.neuron_pairs import moved_mlp
from tests.served import serving, write_model
from tests.tiny import TinyModels

ASKED = ["bake the bread", "mend the shoe"]
NEW = 6


def said_by(model: HookedModel) -> list[Said]:
    new = model.generate(model.chat_batch(ASKED), NEW)
    replies = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [Said(prompt, reply) for prompt, reply in zip(ASKED, replies, strict=True)]


@pytest.mark.slow
def test_a_served_model_judges_the_replies_of_both_models_and_of_the_patch(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    moved = moved_mlp(tiny_models, "llama")
    moved.model.save_pretrained(tmp_path / "moved")
    moved.tokenizer.save_pretrained(tmp_path / "moved")
    known = [((Message("user", "Say hello."),), '{"label":"refusal"}')]
    for model, label in ((tiny_models.handle("llama"), "compliance"), (moved, "refusal")):
        for said in said_by(model):
            known.append((label_request(said, "0").messages, json.dumps({"label": label}, separators=(",", ":"))))
    assert len({messages for messages, _ in known}) == 5  # no reply is both models'
    write_model(tmp_path / "served" / "judge", known, steps=300)
    for name, prompts in (("contrast", ["paint the door", "bake a cake"]), ("evaluate", ASKED)):
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts))
    with serving(tmp_path / "served" / "judge") as llm:
        find_safety_neurons(
            first=str(tiny_models.folder("llama")), second=str(tmp_path / "moved"), count=[80], n_windows=0,
            contrast_file=tmp_path / "contrast.txt", evaluate_file=tmp_path / "evaluate.txt", max_new_tokens=NEW,
            judge_base_url=llm.base_url, judge_model=llm.model, database=f"sqlite:///{tmp_path / 'x.db'}", as_json=True,
        )  # fmt: skip
    search = json.loads(capsys.readouterr().out)["search"]
    assert (search["first_score"]["value"], search["second_score"]["value"]) == (0.0, 1.0)
    assert search["n_failed"] == 0
    assert (search["curve"][0]["effect"]["value"], search["curve"][0]["effect"]["n"]) == (1.0, 2)
