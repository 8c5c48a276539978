"""The client, prompts and parsers against `transformers serve`: another program's HTTP, chat template and sampling.

The served model is a tiny Qwen2 trained here until it knows one answer by heart, whatever it is asked.
"""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from safe_sail.errors import EndpointRefused
from safe_sail.features.judge_prompts import SegmentReply
from safe_sail.features.prompts import ExplanationReply, FeatureSamples, Prompt, explanation_prompt, read_explanations
from safe_sail.llm.client import OpenAiClient
from safe_sail.llm.exchange import Answered, ChatRequest, Failed, FailureReason, Message, Outcome
from safe_sail.llm.probe import Capabilities
from safe_sail.llm.tokens import estimate_prompt, estimate_tokens
from safe_sail.settings import LlmSettings
from tests.feature_samples import HOSTILE, a_context, active_contexts, silent_contexts

pytestmark = pytest.mark.slow

ANSWER = '{"explanations":[{"id":"A","explanation":"violence against people"}]}'
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = 150


def prompts() -> list[Prompt]:
    """Different explanation prompts, one with hostile contexts."""
    hostile = tuple(a_context(f"kill {text}", {"kill": 5.0}) for text in HOSTILE)
    samples = [
        FeatureSamples(active=active_contexts(), silent=silent_contexts(), scale=10.0),
        FeatureSamples(active=active_contexts()[2:], silent=silent_contexts()[:1], scale=7.0),
        FeatureSamples(active=hostile, scale=5.0),
    ]
    return [explanation_prompt([each], count_tokens=estimate_tokens, max_tokens=1500) for each in samples]


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    return Message("system", prompt.system), Message("user", prompt.user)


def a_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    return fast


def write_model(folder: Path) -> None:
    """Writes a model that answers ANSWER to any of the prompts and to what resembles them."""
    torch.manual_seed(0)
    questions = [messages_of(prompt) for prompt in prompts()[:2]] + [(Message("user", "Say hello."),)]
    tokenizer = a_tokenizer([message.content for question in questions for message in question] + [ANSWER] * 20)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    answer = tokenizer(ANSWER + "<|im_end|>")["input_ids"]
    rows = []
    for question in questions:
        turns = [message._asdict() for message in question]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = torch.tensor([asked + answer])
        labels = ids.clone()
        labels[:, : len(asked)] = -100
        rows.append((ids, labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(STEPS):
        ids, labels = rows[step % len(rows)]
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, "the tiny model did not learn its answer"
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmSettings]:
    folder = tmp_path_factory.mktemp("served") / "model"
    write_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (folder.parent / "log").open("wb")
    server = subprocess.Popen([sys.executable, "-c", start, "serve", str(folder), *options], stdout=log, stderr=log)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server)
        yield LlmSettings(base_url=f"http://127.0.0.1:{port}/v1", model=str(folder), max_in_flight=2, timeout_s=60)
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(240):
        assert server.poll() is None, "transformers serve ended"
        try:
            with urlopen(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.25)
    raise AssertionError("transformers serve did not come up within a minute")


def ask(settings: LlmSettings, requests: list[ChatRequest]) -> tuple[list[Outcome], OpenAiClient]:
    async def run() -> tuple[list[Outcome], OpenAiClient]:
        async with OpenAiClient(settings) as client:
            return [outcome async for outcome in client.ask_all(requests)], client

    return asyncio.run(run())


def test_explanations_come_from_a_served_model_and_what_it_cannot_do_is_seen(served: LlmSettings):
    def check(reply: object) -> None:
        assert isinstance(reply, ExplanationReply)
        read_explanations(reply, 1)

    requests = [
        ChatRequest(
            request_id=str(number),
            messages=messages_of(prompt),
            prompt_version=prompt.version,
            reply_type=ExplanationReply,
            check=check,
            max_tokens=80,
        )
        for number, prompt in enumerate(prompts())
    ]
    outcomes, client = ask(served, requests)
    assert client.capabilities == Capabilities(schema=False, logprobs=False, usage=True), "it ignores both silently"
    answered = {o.request_id: o for o in outcomes if isinstance(o, Answered)}
    assert sorted(answered) == ["0", "1", "2"]
    for outcome in answered.values():
        assert isinstance(outcome.reply, ExplanationReply)
        assert read_explanations(outcome.reply, 1) == ["violence against people"]
        assert outcome.spending.attempts == 1
        assert outcome.spending.prompt_tokens > 0
        assert outcome.spending.cost is None
    first = answered["0"].spending
    assert first.completion_tokens <= 80
    assert estimate_prompt(requests[0].messages) > 0


def test_answer_of_another_form_is_a_failure_with_its_text(served: LlmSettings):
    request = ChatRequest(
        request_id="s",
        messages=messages_of(prompts()[0]),
        prompt_version="1",
        reply_type=SegmentReply,
        max_tokens=80,
    )
    (outcome,), _ = ask(served, [request])
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.attempts) == (FailureReason.INVALID_REPLY, 2)
    assert outcome.raw is not None
    assert "explanations" in outcome.raw


def test_model_that_the_server_does_not_serve_is_said_at_start(served: LlmSettings):
    other = LlmSettings(base_url=served.base_url, model="another-model")
    with pytest.raises(EndpointRefused, match="another-model"):
        ask(other, [])
