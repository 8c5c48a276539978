"""The positive activations of chosen features on a batch's content tokens."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.features.context_buffers import Firings
from safe_sail.model.tokens import TokenBatch
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site

CPU_ENTRIES: Final = 2**21
"""Activations in one product: 8 MB stay in the heap, where 32 MB and more are mapped anew, page by page, each time."""
GPU_ENTRIES: Final = 2**28


def chosen_features(sae: SAEHandle, features: Sequence[int]) -> Int[Tensor, " n"] | None:
    """The features to encode; None for all of them in their order, which costs no copy of the encoder."""
    if list(features) == list(range(sae.d_sae)):
        return None
    return torch.tensor(list(features), dtype=torch.long, device=sae.device)


def firings_on(
    sae: SAEHandle,
    chosen: Int[Tensor, " n"] | None,
    captured: Float[Tensor, "batch seq *axes"],
    content: Bool[Tensor, "batch seq"],
    batch: TokenBatch,
) -> Firings:
    """The positive activations on content tokens; `chosen` as `chosen_features` gave it.

    Raises:
        BadInput: activations are not finite.
    """
    content = content.to(captured.device)
    inputs = captured[content].to(sae.device)
    if not bool(inputs.isfinite().all()):
        _refuse(sae.site, batch, "the model's activations")
    n_features = sae.d_sae if chosen is None else len(chosen)
    at_once = max(1, (CPU_ENTRIES if sae.device.type == "cpu" else GPU_ENTRIES) // n_features)
    parts = []
    for first in range(0, len(inputs), at_once):
        encoded = sae.encode(inputs[first : first + at_once], chosen).float()
        entries = _positive_entries(encoded)
        parts.append(((entries + first * n_features).cpu(), encoded.view(-1)[entries].cpu()))
    entries = torch.cat([torch.empty(0, dtype=torch.long), *(part[0] for part in parts)])
    values = torch.cat([torch.empty(0), *(part[1] for part in parts)])
    if not bool(values.isfinite().all()):
        _refuse(sae.site, batch, f"activations of SAE {sae.ref.slug}")
    tokens = entries // n_features
    windows = content.nonzero()[:, 0].cpu()
    positions = batch.position_ids.to(content.device)[content].cpu()
    return Firings(windows[tokens], positions[tokens], entries - tokens * n_features, values)


def _positive_entries(encoded: Float[Tensor, "token feature"]) -> Int[Tensor, " n"]:
    """Places of the positive values in the flattened tensor, ascending."""
    is_positive = (encoded > 0).view(-1)
    if is_positive.device.type == "cpu":
        # numpy finds the few true places of a mask in a third of torch's time
        return torch.from_numpy(np.flatnonzero(is_positive.numpy()))
    return is_positive.nonzero()[:, 0]


def _refuse(site: Site, batch: TokenBatch, what: str) -> None:
    raise BadInput(
        f"{what} at {site} are not finite in the windows {batch.source_ids[0]} to {batch.source_ids[-1]}; "
        f"load the model in float32 or bfloat16."
    )
