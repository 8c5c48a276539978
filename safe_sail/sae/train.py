"""Trains sparse autoencoders (SAEs) on activations through SAELens' own training classes.

1. Scale the activations so that their mean norm is sqrt(d_in), as SAELens does for `expected_average_only_in`.
2. Build SAELens' training SAE of the asked architecture from the seed and step its trainer over the batches.
3. Fold the scale into the weights, so that the SAE reads and writes the model's own units.
4. Convert to the storing dtype, save as a SAELens folder, and measure what is on disk on held-out activations.

`Training` is one SAE on its way; `train_saes` takes it through activations that fit into memory, `stream.py` through
those of a corpus of any size.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_sail.errors import BadSettings
from safe_sail.settings import SaeRecipe

Progress = Callable[[str, int, float], None]
"""Called with the SAE's slug, the step and the loss."""


@dataclass(frozen=True, slots=True)
class TrainedFacts:
    """What one trained SAE measures on activations it was not trained on, read back from disk."""

    l0: float
    """Mean number of active features per token."""
    explained_variance: float
    """1 - residual variance / variance, summed over dimensions, in float64."""
    dead_share: float
    """Share of features that no held-out activation turns on."""
    seconds: float
    """Wall time of the training."""


class TrainedSae(NamedTuple):
    """A stored SAE and what it measures."""

    recipe: SaeRecipe
    facts: TrainedFacts
    sae: Any
    """SAELens' SAE as stored, read back in float32."""


def shuffled_batches(activations: Tensor, batch_rows: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of rows: every row once per pass, in an order drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for first in range(0, len(order) - batch_rows + 1, batch_rows):
            yield activations[order[first : first + batch_rows]]


class Training:
    """One SAE on its way: SAELens' training SAE and trainer, stepped by whoever has the activations."""

    def __init__(
        self,
        recipe: SaeRecipe,
        *,
        d_in: int,
        scale: float,
        metadata: Mapping[str, object],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.recipe, self.scale = recipe, scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sae = _training_sae(recipe, d_in, metadata).to(device)
        config = SAETrainerConfig(
            total_training_samples=recipe.steps * recipe.batch_rows,
            train_batch_size_samples=recipe.batch_rows,
            lr=recipe.learning_rate,
            lr_end=0.0,
            lr_decay_steps=recipe.steps // 5,
            dead_feature_window=max(1, recipe.steps // 8),
            feature_sampling_window=max(1, recipe.steps // 4),
            device=str(device),
        )
        # its own fit() would print a progress bar, and wants the activations of one SAE alone
        self._trainer: Any = SAETrainer(config, self.sae, iter(()))

    def step(self, rows: Tensor) -> float:
        """One optimiser step on activations [tokens d_in] in the model's units; the loss.

        Raises:
            BadSettings: the loss is no number any more.
        """
        self._trainer.maybe_reset_sparsity()
        output = self._trainer.step(rows * self.scale)
        self._trainer.n_training_steps += 1
        loss = float(output.loss.detach())
        if not math.isfinite(loss):
            raise BadSettings(
                f"the training of {self.recipe.slug} fell apart at step {self._trainer.n_training_steps}: its loss is "
                f"{loss}. Lower the learning rate ({self.recipe.learning_rate:g}) or the sparsity."
            )
        return loss

    def finish(self) -> Any:
        """SAELens' SAE in the model's units; no step may follow."""
        self._trainer.set_final_sae_metadata()
        self.sae.fold_activation_norm_scaling_factor(self.scale)
        return self.sae


def _training_sae(recipe: SaeRecipe, d_in: int, metadata: Mapping[str, object]) -> Any:
    """SAELens' training SAE of this recipe, weights drawn from the global generator."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    shared = {"d_in": d_in, "d_sae": recipe.d_sae, "dtype": "float32", "metadata": SAEMetadata(**metadata)}
    warm_up = recipe.steps // 4
    if recipe.architecture == "topk":
        return sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**shared, k=recipe.k))
    if recipe.architecture == "batchtopk":
        return sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**shared, k=float(recipe.k)))
    if recipe.architecture == "standard":
        return sae_lens.StandardTrainingSAE(
            sae_lens.StandardTrainingSAEConfig(**shared, l1_coefficient=recipe.sparsity, l1_warm_up_steps=warm_up)
        )
    return sae_lens.JumpReLUTrainingSAE(
        sae_lens.JumpReLUTrainingSAEConfig(**shared, l0_coefficient=recipe.sparsity, l0_warm_up_steps=warm_up)
    )


def store_sae(training: Training, folder: Path, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Writes the trained SAE as a SAELens folder, all in one dtype; SAELens alone keeps some weights in float32."""
    sae, kind = training.finish(), getattr(torch, dtype)
    sae.cfg.dtype = dtype
    sae.cfg.device = "cpu"
    sae.to(device="cpu", dtype=kind)
    weights_path, _ = sae.save_inference_model(folder)
    weights = load_file(weights_path)
    if any(value.dtype != kind for value in weights.values()):
        save_file({name: value.to(kind) for name, value in weights.items()}, weights_path)


@torch.no_grad()
def _measure(sae: Any, activations: Tensor, seconds: float) -> TrainedFacts:
    centred = activations.double() - activations.double().mean(0)
    error, active, fired = 0.0, 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for chunk in activations.split(4096):
        features = sae.encode(chunk)
        on = features > 0
        error += (sae.decode(features).double() - chunk.double()).pow(2).sum().item()
        active, fired = active + int(on.sum()), fired | on.any(0)
    return TrainedFacts(
        active / len(activations), 1 - error / centred.pow(2).sum().item(), 1 - fired.double().mean().item(), seconds
    )


def train_saes(
    activations: Tensor,
    held_out: Tensor,
    recipes: Sequence[SaeRecipe],
    folder: Path,
    *,
    model_name: str,
    hook_name: str,
    seed: int,
    dtype: Literal["float32", "float16"] = "float16",
    progress: Progress | None = None,
) -> Iterator[TrainedSae]:
    """Trains one SAE per recipe on activations (tokens d_in), saves it in folder / slug and yields it.

    The facts are measured on held_out (tokens d_in), from the stored weights read back in float32. hook_name is the
    site in TransformerLens' words, model_name the model's id; both go into the SAE's metadata.
    """
    import sae_lens

    scale = math.sqrt(activations.shape[1]) / activations.double().norm(dim=1).mean().item()
    metadata = {"model_name": model_name, "hook_name": hook_name, "prepend_bos": True, "context_size": 256}
    for recipe in recipes:
        begin = time.perf_counter()
        training = Training(recipe, d_in=activations.shape[1], scale=scale, metadata=metadata, seed=seed)
        batches = shuffled_batches(activations, recipe.batch_rows, seed)
        for step, rows in enumerate(islice(batches, recipe.steps)):
            loss = training.step(rows)
            if progress is not None:
                progress(recipe.slug, step, loss)
        store_sae(training, folder / recipe.slug, dtype)
        stored = sae_lens.SAE.load_from_disk(folder / recipe.slug, dtype="float32")
        yield TrainedSae(recipe, _measure(stored, held_out, time.perf_counter() - begin), stored)
