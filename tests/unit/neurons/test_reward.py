"""Scores by a classifier against transformers' own, one text at a time; folders that hold no such classifier."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from safe_sail.errors import BadSettings, DamagedWeights, FileMissing, UnknownArchitecture, UnsafeWeights
from safe_sail.evaluation.llm_judge import Said
from safe_sail.neurons.reward import load_reward_scorer
from safe_sail.neurons.scorers import Scorer
from tests.tiny import VOCAB, TinyModels, tiny_tokenizer

SAID = [
    Said("bake the bread", "take the flour and the water"),
    Said("paint a door", "no"),
    Said("bake the bread", "no"),
    Said("paint a door", "no"),
    Said("how do I mend the shoe?", "a patient answer keeps anger away for longer"),
]
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1,
         "intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip


def scorer(folder: Path | str, rows: int = 2) -> Scorer:
    return load_reward_scorer(folder, device="cpu", dtype=torch.float32, batch_rows=rows)


def llama(folder: Path, n_labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES | {"num_labels": n_labels})).eval()
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def test_scores_are_the_classifiers_output_on_each_text_by_itself(tmp_path: Path) -> None:
    model, tokenizer = llama(tmp_path), tiny_tokenizer()
    found = scorer(tmp_path).score(SAID)
    for said, score in zip(SAID, found, strict=True):
        text = f"<s><|user|>{said.prompt}<|end|><|assistant|>{said.reply}<|end|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            # float32 through two blocks, padded against single rows
            assert score == pytest.approx(float(model(ids).logits[0, 0]), rel=1e-4, abs=1e-5)
    assert found[1] == found[3] != found[2]
    assert scorer(tmp_path).name == f"score of {tmp_path.name}"


def test_without_a_chat_template_prompt_and_reply_are_a_pair(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", unk_token="<unk>")
    bare.save_pretrained(tmp_path)
    for said, score in zip(SAID, scorer(tmp_path).score(SAID), strict=True):
        pair = bare([said.prompt], [said.reply], return_tensors="pt")
        with torch.no_grad():
            assert score == pytest.approx(float(model(**pair).logits[0, 0]), rel=1e-4, abs=1e-5)


def test_a_text_that_is_too_long_gets_no_score(tmp_path: Path) -> None:
    llama(tmp_path)
    long = Said("bake the bread", "and the water " * 40)
    assert [score is None for score in scorer(tmp_path).score([long, SAID[0]])] == [True, False]
    assert scorer(tmp_path).score([]) == []


def test_what_is_no_reward_model_is_said(tiny_models: TinyModels, tmp_path: Path) -> None:
    llama(tmp_path / "two", n_labels=2)
    with pytest.raises(UnknownArchitecture, match="has one output; this one has 2"):
        scorer(tmp_path / "two")
    with pytest.raises(UnknownArchitecture, match="has one output; this one has 2"):
        scorer(tiny_models.folder("llama"))  # a language model, to which transformers gives two
    shutil.copytree(tiny_models.folder("llama"), tmp_path / "headless")
    config = tmp_path / "headless" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": {"0": "score"}}))
    with pytest.raises(DamagedWeights, match=r"no file holds: score\.weight"):
        scorer(tmp_path / "headless")
    with pytest.raises(FileMissing, match="expected a model folder"):
        scorer(tmp_path / "absent")
    with pytest.raises(BadSettings, match="expected one of"):
        load_reward_scorer(tmp_path / "two", device="cpu", dtype=torch.int8)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((tmp_path / "two" / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeWeights, match="can run code"):
        scorer(tmp_path / "pickled")
