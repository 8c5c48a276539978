"""Adapters of PEFT as plain models: LoRA merged into the weights, IA3 folded to where neuron activations carry it.

1. The folder holds `adapter_config.json` and `adapter_model.safetensors`; pickle weights are refused.
2. PEFT reads them on top of the base model; every tensor of the file must have gone somewhere, and none may be missing.
3. IA3 on the down projection scales that projection's input, which is the neuron activation. Merged into W_out, as PEFT
   merges it, the scale would not show at `mlp_act`; in a gated MLP it is put into W_in's rows instead, which is the
   same function and makes the scaled activation the neuron's. Elsewhere PEFT's merge stands.
4. Everything else is merged by PEFT, and no trace of the adapter is left in the model.
"""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safe_sail.errors import BadSettings, DamagedWeights, FileMissing, UnsafeWeights
from safe_sail.model.architectures import Architecture

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """Folder or hub name of the model that the adapter was trained on.

    Raises:
        DamagedWeights: the configuration is not JSON, or names no base.
    """
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedWeights(f"{folder / CONFIG}: expected JSON with `base_model_name_or_path` ({error!r}).") from error
    if not isinstance(base, str) or not base:
        raise DamagedWeights(f"{folder / CONFIG}: names no base model; give `base`.")
    return base


def with_adapter(model: Any, row: Architecture, folder: Path) -> Any:
    """The model with the adapter's change in its own weights, as a plain model of the same class.

    Raises:
        BadSettings: PEFT is not installed, or the adapter learns a prompt.
        UnsafeWeights: the folder holds pickle weights only.
        FileMissing: the folder holds no weights.
        DamagedWeights: the file is damaged, or its tensors are not those of the configuration.
    """
    if find_spec("peft") is None:
        raise BadSettings("an adapter folder needs the package peft: pip install 'safe-sail[peft]'.")
    from peft import PeftModel, get_peft_model_state_dict  # here: it is optional

    names = _names(folder)
    try:
        with warnings.catch_warnings():
            # what is missing is refused by name below
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
    except (ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise DamagedWeights(f"{folder}: the adapter does not fit its base model ({error}).") from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise BadSettings(f"{folder}: a prompt-learning adapter has no weights to merge; use LoRA, IA3 or the like.")
    expected = set(get_peft_model_state_dict(wrapped))
    if expected != names:  # PEFT leaves a missing tensor at its start and drops one it has no place for
        odd = sorted(expected ^ names)
        raise DamagedWeights(
            f"{folder}: the file's tensors are not those of {CONFIG} on this base: {', '.join(odd[:4])}"
            f"{f' and {len(odd) - 4} more' if len(odd) > 4 else ''}."
        )
    scales = _take_scales(wrapped.base_model.model, row) if row.mlp_gate is not None else {}
    plain = wrapped.merge_and_unload()
    blocks = plain.get_submodule(row.blocks)
    with torch.no_grad():
        for layer, scale in scales.items():
            up = blocks.get_submodule(f"{layer}.{row.mlp_up}")
            for part in (up.weight, getattr(up, "bias", None)):
                if part is not None:
                    rows = part[-len(scale) :]  # a fused module holds W_gate above W_in
                    rows *= scale.to(part).reshape(-1, *[1] * (part.ndim - 1))
    return plain


def _names(folder: Path) -> set[str]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(one.name for one in folder.glob("adapter_model.*"))
        if pickles:
            raise UnsafeWeights(f"{folder}: holds {pickles[0]} and no {WEIGHTS}; save the adapter as safetensors.")
        raise FileMissing(f"{folder}: expected {WEIGHTS}; there is none.")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise DamagedWeights(f"{path} is damaged ({error}); fetch it again.") from error


def _take_scales(model: Any, row: Architecture) -> dict[str, Tensor]:
    """IA3 scales of the down projections' inputs by layer, taken out of the adapter."""
    found: dict[str, Tensor] = {}
    for layer, block in model.get_submodule(row.blocks).named_children():
        try:
            down = block.get_submodule(row.mlp_down)
        except AttributeError:  # a mixture of experts
            continue
        if getattr(down, "is_feedforward", False):
            for value in down.ia3_l.values():
                found[layer] = value.detach().flatten().clone()
                with torch.no_grad():
                    value.fill_(1.0)
    return found
