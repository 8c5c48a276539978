"""Safety Circuit Tuning: train the circuit alone, or everything but the circuit.

1. A copy of the model gets trainable deltas where training is allowed: `rows` adds a number to every allowed one,
   `low_rank` adds mask * (B A) to every allowed matrix. Everything else is the model's own, frozen.
2. Rows are prompts with replies; the loss is cross-entropy on the reply's tokens. AdamW without weight decay, gradients
   clipped, a linear warm-up and decay.
3. The deltas are merged into the copy's weights. Numbers outside what was allowed are bit-equal to before.

The tuned copy stays in the caller's memory; nothing here writes it anywhere.

Source: SafeSeek (Yu et al. 2026), section on Safety Circuit Tuning, arXiv:2603.23268, and its sequel's masked low-rank
form W' = W + Diag(m) B A. Their code is not public: clip 1.0 and no weight decay as in the public script of that name.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils import parametrize

from safe_sail.circuits.entries import Entries, n_entries
from safe_sail.errors import BadSettings, BadText
from safe_sail.evaluation.utility import TokenRow, token_rows
from safe_sail.model.chat import render_chat
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, batch_of_ids, pad_id_of
from safe_sail.settings import TuningSettings

Progress = Callable[[int, float], None]
"""Called with the step, from 1, and its loss in nats per token."""


class RowDelta(torch.nn.Module):
    """Adds one trainable float32 number to each allowed place."""

    def __init__(self, index: Int[Tensor, " entries"]) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.delta = torch.nn.Parameter(torch.zeros(len(index)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its deltas; elsewhere bit-equal."""
        index: Tensor = self.index  # type: ignore[assignment]
        flat = weight.reshape(-1)
        changed = (flat[index].float() + self.delta).to(weight.dtype)
        return flat.scatter(0, index, changed).reshape(weight.shape)


class LowRankDelta(torch.nn.Module):
    """Adds scale * (B A) to the allowed places of a matrix; B is zero at first."""

    def __init__(
        self, index: Int[Tensor, " entries"], shape: torch.Size, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask[index] = True
        self.register_buffer("mask", mask.reshape(shape))
        self.A = torch.nn.Parameter(torch.randn(rank, shape[1], generator=generator) / math.sqrt(shape[1]))
        self.B = torch.nn.Parameter(torch.zeros(shape[0], rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its masked low-rank change; elsewhere bit-equal."""
        mask: Tensor = self.mask  # type: ignore[assignment]
        changed = (weight.float() + self.scale * (self.B @ self.A)).to(weight.dtype)
        return torch.where(mask, changed, weight)


def tuned_copy(
    handle: HookedModel,
    rows: Sequence[TokenRow],
    allowed: Entries,
    settings: TuningSettings,
    *,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> HookedModel:
    """A copy of the model trained on the rows at the allowed places, deltas merged; for evaluation.

    Raises:
        BadSettings: nothing may be trained.
        BadText: there is no row, or a row has nothing to predict.
    """
    if n_entries(allowed) == 0:
        raise BadSettings("tuning: no weight may be trained; give a circuit with heads or neurons.")
    for index, row in enumerate(rows):
        if not 1 <= row.first_predicted < len(row.ids):
            raise BadText(f"row {index}: no token to predict from column {row.first_predicted} of {len(row.ids)}.")
    if not rows:
        raise BadText("tuning needs rows of a prompt with its reply; got none.")
    model = copy.deepcopy(handle.model).requires_grad_(False)
    tuned = HookedModel(model, handle.tokenizer, handle.architecture, model_id=handle.model_id)
    trained = _with_deltas(tuned, allowed, settings, generator)
    _train(tuned, rows, trained, settings, generator, progress)
    for module in model.modules():
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(False)
    return tuned


def _with_deltas(
    tuned: HookedModel, allowed: Entries, settings: TuningSettings, generator: torch.Generator
) -> list[torch.nn.Parameter]:
    trained: list[torch.nn.Parameter] = []
    for name, index in allowed.items():
        path, _, last = name.rpartition(".")
        module: torch.nn.Module = tuned.model.get_submodule(path)
        weight = module.get_parameter(last)
        if settings.method == "low_rank" and weight.ndim != 2:
            continue  # a low-rank change is of a matrix; biases and gains stay
        delta = (
            RowDelta(index)
            if settings.method == "rows"
            else LowRankDelta(index, weight.shape, settings.rank, settings.alpha, generator)
        ).to(weight.device)
        parametrize.register_parametrization(module, last, delta, unsafe=True)
        trained += delta.parameters()
    if not trained:
        raise BadSettings("tuning: a low-rank change needs a matrix among what may be trained; got biases alone.")
    return trained


def n_trained(handle: HookedModel, allowed: Entries, settings: TuningSettings) -> int:
    """Weights that may change."""
    if settings.method == "rows":
        return n_entries(allowed)
    return sum(len(index) for name, index in allowed.items() if handle.model.get_parameter(name).ndim == 2)


def _train(
    tuned: HookedModel,
    rows: Sequence[TokenRow],
    trained: Sequence[torch.nn.Parameter],
    settings: TuningSettings,
    generator: torch.Generator,
    progress: Progress | None,
) -> None:
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    for step, chosen in enumerate(_batches(len(rows), settings, generator), start=1):
        # each weight is put together once a step, not once a use
        with parametrize.cached():
            loss = reply_loss(tuned, [rows[index] for index in chosen])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step, float(loss.detach()))


def _rate(step: int, settings: TuningSettings) -> float:
    warm = max(1, round(settings.warm_up * settings.n_steps))
    if step < warm:
        return (step + 1) / warm
    return max(0.0, (settings.n_steps - step) / max(1, settings.n_steps - warm))


def _batches(n: int, settings: TuningSettings, generator: torch.Generator) -> Iterator[list[int]]:
    """Row numbers of each step; every row once before any comes again."""
    left: list[int] = []
    for _ in range(settings.n_steps):
        while len(left) < settings.batch_rows:
            left += torch.randperm(n, generator=generator).tolist()
        yield left[: settings.batch_rows]
        del left[: settings.batch_rows]


def reply_rows(handle: HookedModel, pairs: Sequence[tuple[str, str]]) -> list[TokenRow]:
    """Prompts in the chat template with their replies and the end token, as ids.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    rendered = render_chat(handle.tokenizer, [prompt for prompt, _ in pairs])
    return token_rows(handle.tokenizer, rendered, [reply for _, reply in pairs], end_id=handle.tokenizer.eos_token_id)


def token_batch(handle: HookedModel, rows: Sequence[TokenRow]) -> TokenBatch:
    """Rows padded on the right."""
    return batch_of_ids(
        [row.ids for row in rows],
        pad_id=pad_id_of(handle.tokenizer),
        padding_side="right",
        max_positions=handle.dims.max_positions,
    )


def reply_loss(handle: HookedModel, rows: Sequence[TokenRow]) -> Float[Tensor, ""]:
    """Cross-entropy in nats per reply token, in float32, with gradients."""
    batch = token_batch(handle, rows)
    logits = handle.logits(batch)[:, :-1].float()
    columns = torch.arange(1, batch.token_ids.shape[1])
    starts = torch.tensor([row.first_predicted for row in rows])
    ends = torch.tensor([len(row.ids) for row in rows])
    counted = ((columns >= starts[:, None]) & (columns < ends[:, None])).to(logits.device)
    targets = batch.token_ids[:, 1:].to(logits.device)
    loss: Tensor = torch.nn.functional.cross_entropy(logits[counted], targets[counted])
    return loss
