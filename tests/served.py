"""Tiny chat models that know answers by heart, written to disk, and `transformers serve` over them: another program.

`write_model` trains one until it gives each of its answers; `serving` is the server's URL, while it runs.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from safe_sail.llm.exchange import Message
from safe_sail.settings import LlmSettings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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


def write_model(folder: Path, known: Sequence[tuple[Sequence[Message], str]], steps: int) -> None:
    """Writes a model that gives these answers to these messages, and some such answer to what resembles them."""
    torch.manual_seed(0)
    texts = [message.content for messages, _ in known for message in messages]
    tokenizer = a_tokenizer(texts + [answer for _, answer in known] * 20)
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
    rows = []
    for messages, answer in known:
        turns = [message._asdict() for message in messages]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = torch.tensor([asked + tokenizer(answer + "<|im_end|>")["input_ids"]])
        labels = ids.clone()
        labels[:, : len(asked)] = -100
        rows.append((ids, labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = [float("inf")] * len(rows)
    for step in range(steps):
        ids, labels = rows[step % len(rows)]
        loss = model(input_ids=ids, labels=labels).loss
        losses[step % len(rows)] = loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if max(losses) < 0.02:
            break
    assert max(losses) < 0.05, f"the tiny model did not learn its answers: {losses}"
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(folder: Path) -> Iterator[LlmSettings]:
    """Settings of a client for `transformers serve` of the model in the folder."""
    start = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    path = folder.parent / "log"
    with path.open("wb") as log:
        server = subprocess.Popen([sys.executable, "-c", start, "serve", str(folder), *options], stdout=log, stderr=log)
    try:
        address = _address(path, server)
        with urlopen(f"{address}/health", timeout=300):
            yield LlmSettings(base_url=f"{address}/v1", model=str(folder), max_in_flight=2, timeout_s=600)
    finally:
        server.terminate()
        server.wait()


def _address(log: Path, server: "subprocess.Popen[bytes]") -> str:
    """Where it listens, once it does: it says so itself, and the port is the system's choice."""
    while (found := re.search(r"running on (http://[0-9.]+:[0-9]+)", log.read_text(errors="replace"))) is None:
        assert server.poll() is None, f"transformers serve ended: {log.read_text(errors='replace')[-2000:]}"
        time.sleep(0.25)
    return found[1]
