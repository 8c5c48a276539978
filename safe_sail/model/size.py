"""Sizes of a model by its configuration alone: nothing but a small JSON file is read, and no weight gets memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from safe_sail.model.architectures import architecture_of
from safe_sail.model.dims import ModelDims, dims_of
from safe_sail.model.load import read_config
from safe_sail.sites import Site


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What a model holds and does, before it is loaded."""

    dims: ModelDims
    n_parameters: int
    """All of them, tied ones once."""
    n_block: tuple[int, ...]
    """Of each block."""
    n_block_active: tuple[int, ...]
    """Those that one token passes: all of a dense block; of a mixture, its share of experts."""
    n_head: int
    """Of the unembedding, which one token passes."""

    def n_to(self, sites: list[Site]) -> int:
        """Parameters that one token passes on its way to the deepest of the sites, embedding left out."""
        deepest = max((-1 if site.layer is None else site.layer for site in sites), default=-1)
        return sum(self.n_block_active[: deepest + 1])


def model_size(path_or_name: str | Path) -> ModelSize:
    """Sizes of the model of a folder or hub name.

    Raises:
        FileMissing: there is neither such a folder nor such a hub name within reach.
        DamagedWeights: the configuration does not hold together.
        UnknownArchitecture: the model class has no row in the architecture table.
    """
    config: Any = read_config(str(path_or_name))
    class_names = getattr(config, "architectures", None) or [f"(none named, model type {config.model_type})"]
    row = architecture_of(class_names[0], config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = list(model.get_submodule(row.blocks).children())
    counts = tuple(sum(p.numel() for p in block.parameters()) for block in blocks)
    return ModelSize(
        dims=dims_of(row, model, config),
        n_parameters=sum(p.numel() for p in model.parameters()),
        n_block=counts,
        n_block_active=tuple(_active(row, block, config) for block in blocks),
        n_head=model.get_submodule(row.unembed).get_parameter("weight").numel(),
    )


def _active(row: Any, block: torch.nn.Module, config: Any) -> int:
    share = 1.0
    prefix = ""
    if row.experts is not None:
        prefix = row.experts
        share = config.num_experts_per_tok / max(1, getattr(config, "num_local_experts", None) or config.num_experts)
    total = 0.0
    for name, parameter in block.named_parameters():
        total += parameter.numel() * (share if prefix and name.startswith(prefix) else 1.0)
    return round(total)
