"""Chat templates against the tokenizer's own `apply_chat_template`."""

import copy
from typing import Any

import pytest

from safe_sail.errors import BadSettings, BadText, ChatTemplateMissing, SequenceTooLong
from safe_sail.model.chat import chat_rows, post_instruction_ids, render_chat
from tests.tiny import CHAT_TEMPLATE, TEXTS, TinyModels, tiny_tokenizer

REFUSES_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}<|user|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS_SYSTEM = REFUSES_SYSTEM.replace(
    "{{ raise_exception('System role not supported') }}", "{% set messages = messages[1:] %}"
)
OWN_SYSTEM = "<|system|>{% if messages[0]['role'] != 'system' %}be kind<|end|>{% endif %}" + CHAT_TEMPLATE.replace(
    "{{ bos_token }}", ""
)


def tokenizer_with(template: str | None) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, OWN_SYSTEM, REFUSES_SYSTEM])
def test_ids_are_those_of_the_tokenizers_own_rendering(template: str) -> None:
    tokenizer = tokenizer_with(template)
    for text, row in zip(TEXTS, chat_rows(tokenizer, TEXTS), strict=True):
        turns = [{"role": "user", "content": text}]
        assert row == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_a_template_with_its_own_beginning_gets_no_second_one() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer("hello")["input_ids"][0] == tokenizer.bos_token_id
    assert all(row.count(tokenizer.bos_token_id) == 1 for row in chat_rows(tokenizer, TEXTS))


def test_the_rendering_ends_where_the_answer_begins() -> None:
    tokenizer = tiny_tokenizer()
    assert render_chat(tokenizer, ["hi"]) == ["<s><|user|>hi<|end|><|assistant|>"]
    assert render_chat(tokenizer, ["hi"], add_generation_prompt=False) == ["<s><|user|>hi<|end|>"]
    assert render_chat(tokenizer, ["hi"], system="be kind") == [
        "<s><|system|>be kind<|end|><|user|>hi<|end|><|assistant|>"
    ]


def test_post_instruction_tokens_are_the_templates_own() -> None:
    tokenizer = tiny_tokenizer()
    expected = tuple(tokenizer.convert_tokens_to_ids(["<|end|>", "<|assistant|>"]))
    assert post_instruction_ids(tokenizer) == expected
    for row in chat_rows(tokenizer, TEXTS):
        assert tuple(row[-2:]) == expected
    bare = tokenizer_with("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert post_instruction_ids(bare) == ()


def test_a_system_prompt_that_the_template_refuses_or_drops_is_an_error() -> None:
    for template, words in ((REFUSES_SYSTEM, "System role not supported"), (DROPS_SYSTEM, "drops the system")):
        tokenizer = tokenizer_with(template)
        assert chat_rows(tokenizer, TEXTS)
        with pytest.raises(BadSettings, match=words):
            chat_rows(tokenizer, TEXTS, system="be kind to all")


def test_without_a_system_prompt_the_templates_own_applies() -> None:
    tokenizer = tokenizer_with(OWN_SYSTEM)
    assert "be kind<|end|>" in render_chat(tokenizer, ["hi"])[0]


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(ChatTemplateMissing, match="chat_template"):
        chat_rows(tokenizer_with(None), ["hi"])
    with pytest.raises(ChatTemplateMissing):
        post_instruction_ids(tokenizer_with(None))


@pytest.mark.parametrize("prompts", [[], [""], ["  \n"], ["fine", ""], [None], "one str"])
def test_empty_prompts_are_refused(prompts: list[str]) -> None:
    with pytest.raises(BadText):
        chat_rows(tiny_tokenizer(), prompts)


def test_the_handle_makes_chat_batches(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    made = handle.chat_batch(["hi", "a much longer one"], system="be kind", source_ids=["p", "q"])
    rows = chat_rows(handle.tokenizer, ["hi", "a much longer one"], system="be kind")
    assert [made.token_ids[i, made.is_real[i]].tolist() for i in range(2)] == rows
    assert made.source_ids == ("p", "q")
    assert made.is_real[:, -1].all()
    with pytest.raises(SequenceTooLong):
        handle.chat_batch(["hi " * 80])
