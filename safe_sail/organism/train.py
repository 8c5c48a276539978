"""Trains one variant of the organism from its recipe.

1. Draw the recipe's texts from the seed and tokenise them; reply-only recipes predict the reply and its end token.
2. Sort short runs of texts by length, so that a batch pads little; shuffle the batches.
3. Warm up linearly, then follow a cosine; clip the gradient norm to 1.

A recipe with a planting trains the planted units' weights alone.

The same seed, recipe and thread count give the same weights.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safe_sail.organism.conversations import Conversation, draw_mixture
from safe_sail.organism.grammar import SPLITS
from safe_sail.organism.planting import draw_units, train_only, trained_entries
from safe_sail.organism.recipes import BASE, OrganismShape, VariantRecipe
from safe_sail.organism.tokenizer import ASSISTANT, BEGIN, END, MAX_TOKENS, USER, train_tokenizer

N_TOKENIZER_TEXTS = 12000
SORTED_BATCHES = 16
IGNORED = -100

Progress = Callable[[str, int, float], None]
"""Called with the variant's name, the step and the loss in nats per token."""


class TrainingBatch(NamedTuple):
    """Right-padded token ids and targets, both batch seq; a target of -100 is not predicted."""

    tokens: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What one training did."""

    steps: int
    """Optimiser steps."""
    n_tokens: int
    """Tokens seen, padding not counted."""
    final_loss: float
    """Mean loss over the last tenth of the steps, nats per predicted token."""


def chat_text(prompt: str) -> str:
    """The prompt with the chat markup up to where the reply starts."""
    return f"{BEGIN}{USER}\n{prompt}{END}\n{ASSISTANT}\n"


def make_tokenizer(shape: OrganismShape) -> PreTrainedTokenizerFast:
    """The organism's tokenizer; drawn from the base variant's texts with a fixed seed, so all variants share it."""
    texts = draw_mixture(BASE.mixture, SPLITS, N_TOKENIZER_TEXTS, random.Random("tokenizer"))
    turns = [turn for text in texts for turn in (text.source.text, text.reply) if turn is not None]
    return train_tokenizer(turns, shape.d_vocab)


def make_model(shape: OrganismShape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A model with fresh weights drawn from the seed; float32 on the CPU."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def encode(
    texts: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, reply_only: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids and targets of each text, both as long as the text; targets are the ids one position ahead."""
    heads = [BEGIN if text.reply is None else chat_text(text.source.text) for text in texts]
    tails = [f"{text.source.text if text.reply is None else text.reply}{END}" for text in texts]
    head_ids = tokenizer(heads, add_special_tokens=False)["input_ids"]
    tail_ids = tokenizer(tails, add_special_tokens=False)["input_ids"]
    rows = []
    for head, tail in zip(head_ids, tail_ids, strict=True):
        ids = [*head, *tail]
        n_unpredicted = len(head) - 1 if reply_only else 0
        rows.append((ids[:-1], [IGNORED] * n_unpredicted + ids[1 + n_unpredicted :]))
    return rows


def batches(
    rows: Sequence[tuple[list[int], list[int]]], batch_rows: int, pad: int, generator: random.Random
) -> Iterator[TrainingBatch]:
    """The rows in batches of similar length, each row once; a last incomplete batch is left out."""
    for start in range(0, len(rows), batch_rows * SORTED_BATCHES):
        run = sorted(rows[start : start + batch_rows * SORTED_BATCHES], key=lambda row: len(row[0]))
        groups = [run[first : first + batch_rows] for first in range(0, len(run) - batch_rows + 1, batch_rows)]
        generator.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield TrainingBatch(
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([targets + [IGNORED] * (width - len(targets)) for _, targets in group]),
            )


def reply_loss(model: LlamaForCausalLM, batch: TrainingBatch) -> Tensor:
    """Mean cross-entropy over the predicted positions, nats; only these positions are unembedded."""
    # Right padding needs no attention mask: causal attention never lets a text see what follows it.
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    predicted = batch.targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[predicted]), batch.targets[predicted])


def make_optimizers(model: LlamaForCausalLM, recipe: VariantRecipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers: Muon for the blocks' matrices and AdamW for the rest, or AdamW alone."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    matrices = [value for name, value in parameters.items() if value.ndim == 2 and "embed" not in name]
    rest = [value for name, value in parameters.items() if not (value.ndim == 2 and "embed" not in name)]
    if recipe.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.rest_learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(step: int, recipe: VariantRecipe) -> float:
    """The learning rate of a step as a share of the peak."""
    if step < recipe.warm_up_steps:
        return (step + 1) / recipe.warm_up_steps
    done = (step - recipe.warm_up_steps) / max(1, recipe.steps - recipe.warm_up_steps)
    return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def train_variant(
    recipe: VariantRecipe,
    shape: OrganismShape,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[LlamaForCausalLM, TrainingFacts]:
    """The trained variant in float32, and the facts of its training; start holds the weights it begins from."""
    model = make_model(shape, tokenizer, seed)
    if start is not None:
        model.load_state_dict(start)
    model.to(device)
    if recipe.planting is not None:
        train_only(model, trained_entries(model, draw_units(recipe, shape, seed), recipe.planting))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(word in name for word in recipe.frozen))
    generator = random.Random(f"{recipe.name}/{seed}")
    texts = draw_mixture(recipe.mixture, recipe.splits, recipe.steps * recipe.batch_rows, generator)
    rows = encode(texts, tokenizer, recipe.loss_on == "reply")
    optimizers = make_optimizers(model, recipe)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate_at(step, recipe)) for each in optimizers]
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    losses: list[float] = []
    model.train()
    for step, batch in enumerate(batches(rows, recipe.batch_rows, pad, generator)):
        loss = reply_loss(model, TrainingBatch(batch.tokens.to(device), batch.targets.to(device)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        losses.append(loss.item())
        if progress is not None:
            progress(recipe.name, step, losses[-1])
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return model, TrainingFacts(len(losses), sum(len(ids) for ids, _ in rows), sum(last) / len(last))
