"""Trains SAEs at any sites of a model, all of them in one stream of activations, in memory that the corpus cannot grow.

1. Windows of the corpus pass through the model, stopped at the deepest site; content tokens' activations go on.
2. SAELens' buffer mixes them: half of its rows are served in a random order, then replaced by new ones. All sites share
   one order, and the corpus begins anew when it is over.
3. Each SAE's inputs are scaled so that their mean norm is sqrt(d_in), by what the first batches say.
4. Every SAE steps on the same rows of its site. What one becomes does not depend on which others train beside it.
5. An SAE's folder appears when it is whole: weights, SAELens' configuration, and `training.json`, which says how it was
   made; a run that finds such a folder trains only the others.

Memory: buffer_rows x (sum of the sites' widths) x 4 bytes, three times while the buffer is mixed, and 16 bytes for
every weight of every SAE: itself, its gradient, and two moments.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from safe_sail.errors import BadInput, BadSettings, BadText
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, content_mask
from safe_sail.sae.train import Progress, Training, store_sae
from safe_sail.settings import SaeRecipe, SaeTrainingSettings
from safe_sail.sites import Site

RECORD_FILE: Final = "training.json"
_N_SCALE_BATCHES: Final = 8
"""Batches behind the mean norm: 8,000 rows know it to about a hundredth where norms vary as much as their mean."""

Rows = dict[str, Tensor]
"""Activations of the same tokens at each site, by its name: [tokens d_in]."""


class StreamFacts(NamedTuple):
    """What a training has read."""

    n_tokens: int
    """Content tokens that passed through the model."""
    n_passes: int
    """Times that the corpus was begun."""


class ActivationStream:
    """Rows of activations without end; the corpus is opened again whenever it is over."""

    def __init__(self, model: HookedModel, batches: Callable[[], Iterable[TokenBatch]], sites: Sequence[Site]) -> None:
        self._model, self._batches, self._sites = model, batches, sorted(sites)
        self.n_tokens = 0
        self.n_passes = 0

    def __iter__(self) -> Iterator[Rows]:
        while True:
            before = self.n_tokens
            self.n_passes += 1
            for batch in self._batches():
                with torch.no_grad():
                    captured = self._model.capture(batch, self._sites)
                content = content_mask(batch, self._model.tokenizer).to(self._model.device)
                self.n_tokens += int(content.sum())
                yield {str(site): captured[site][content].flatten(1).float() for site in self._sites}
            if self.n_tokens == before:
                raise BadText("the corpus has no content token to train on; give some text.")

    def mixed(self, *, buffer_rows: int, batch_rows: int) -> Iterator[Rows]:
        """Batches of rows in a random order, drawn from torch's global generator."""
        from sae_lens.training.mixing_buffer import multi_hook_concat_split_iter

        names = [str(site) for site in self._sites]
        return iter(multi_hook_concat_split_iter(buffer_rows, batch_rows, iter(self), names))


def train_on_stream(
    model: HookedModel,
    batches: Callable[[], Iterable[TokenBatch]],
    recipes: Mapping[Site, Sequence[SaeRecipe]],
    *,
    settings: SaeTrainingSettings,
    prepend_bos: bool,
    seed: int,
    progress: Progress | None = None,
) -> tuple[list[Training], StreamFacts]:
    """The trained SAEs, site by site in the order given, and what they were trained on.

    `batches` opens the corpus: windows of at most `settings.window` tokens, held-out documents left out.

    Raises:
        BadSettings: the recipes' batches differ or do not fit into the buffer, or an SAE's loss is no number.
        BadText: the corpus has no content token.
    """
    sizes = {recipe.batch_rows for group in recipes.values() for recipe in group}
    if len(sizes) != 1 or max(sizes) > settings.buffer_rows:
        raise BadSettings(
            f"SAEs trained together share their batches, which fit into the buffer of {settings.buffer_rows} rows; got "
            f"batches of {', '.join(map(str, sorted(sizes))) or 'no'} rows."
        )
    (batch_rows,) = sizes
    stream = ActivationStream(model, batches, list(recipes))
    # on the CPU too where the model is elsewhere: weights and orders are drawn there
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        rows = stream.mixed(buffer_rows=settings.buffer_rows, batch_rows=batch_rows)
        first = list(islice(rows, _N_SCALE_BATCHES))
        trainings = [
            Training(
                recipe,
                d_in=first[0][str(site)].shape[1],
                scale=_scale([one[str(site)] for one in first]),
                metadata=_metadata(model, site, settings, prepend_bos=prepend_bos),
                seed=seed,
                device=model.device,
            )
            for site, group in recipes.items()
            for recipe in group
        ]
        names = [str(site) for site, group in recipes.items() for _ in group]
        n_steps = max(one.recipe.steps for one in trainings)
        for step, batch in enumerate(islice(chain(first, rows), n_steps)):
            for training, name in zip(trainings, names, strict=True):
                if step < training.recipe.steps:
                    loss = training.step(batch[name])
                    if progress is not None:
                        progress(training.recipe.slug, step, loss)
    return trainings, StreamFacts(stream.n_tokens, stream.n_passes)


def _scale(batches: Sequence[Tensor]) -> float:
    """Factor that brings the rows' mean norm to sqrt(d_in)."""
    norm = torch.cat([batch.double().norm(dim=1) for batch in batches]).mean().item()
    if not math.isfinite(norm) or norm == 0:
        raise BadInput(f"activations of mean norm {norm} cannot be trained on; load the model in float32 or bfloat16.")
    return math.sqrt(batches[0].shape[1]) / norm


def _metadata(
    model: HookedModel, site: Site, settings: SaeTrainingSettings, *, prepend_bos: bool
) -> Mapping[str, object]:
    return {
        "model_name": model.model_id,
        "hook_name": site.hook_name,
        "prepend_bos": prepend_bos,
        "context_size": settings.window,
    }


# 5. folders


def store_trained(training: Training, folder: Path, record: Mapping[str, object]) -> Path:
    """The folder `folder / slug`, which appears when it is whole, with the record in it.

    Raises:
        BadInput: something stands in its place.
    """
    target = folder / training.recipe.slug
    made = folder / f".{training.recipe.slug}.new"
    if target.exists():
        raise BadInput(f"`{target}` exists already; move it away, or give another folder.")
    shutil.rmtree(made, ignore_errors=True)
    store_sae(training, made)
    whole = {**record, "recipe": asdict(training.recipe)}
    (made / RECORD_FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    made.rename(target)
    return target


def is_finished(recipe: SaeRecipe, folder: Path, job: Mapping[str, object]) -> bool:
    """Whether the folder holds this SAE, trained as the job says.

    Raises:
        BadInput: it holds one of the same name that was trained otherwise, or that is not of our making.
    """
    target = folder / recipe.slug
    if not target.exists():
        return False
    try:
        found: dict[str, Any] = json.loads((target / RECORD_FILE).read_text(encoding="utf-8"))
        before = {**found["job"], "recipe": found["recipe"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"`{target}` is no SAE of such a training ({type(error).__name__}); give another folder."
        ) from error
    wanted = {**json.loads(json.dumps(job)), "recipe": asdict(recipe)}
    differing = sorted(name for name in wanted if before.get(name) != wanted[name])
    if differing:
        raise BadInput(f"`{target}` was trained otherwise: {', '.join(differing)} differ. Give another folder.")
    return True
