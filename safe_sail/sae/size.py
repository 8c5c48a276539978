"""Sizes of an SAE before its weights are read: from a folder's headers, a checkpoint's shapes, or SAELens' registry."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from safe_sail.errors import BadSite, DamagedWeights, FileMissing, SaeLoadError
from safe_sail.sae.checkpoint import stacked_shapes
from safe_sail.sae.load import CONFIG_FILE, WEIGHTS_FILE, find_in_registry
from safe_sail.sites import Site


class SaeSize(NamedTuple):
    """What an SAE holds."""

    d_in: int
    d_sae: int
    n_numbers: int
    """In all of its tensors."""
    site: Site | None
    """None where its metadata does not say it in a way that can be read here."""


def sae_size(source: str | Path, *, site: Site | None = None) -> SaeSize:
    """Sizes of the SAE at a folder, a checkpoint file or a registry name; `site` is what the caller knows of it.

    Raises:
        FileMissing: the folder lacks a file.
        DamagedWeights: a file is malformed.
        SaeLoadError: the registry has no such name, or its configuration cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_size(path, site)
    if path.is_file():
        shapes = stacked_shapes(path)
        _, d_sae, d_in = shapes["encoder.weight"]
        return SaeSize(d_in, d_sae, sum(math.prod(shape[1:]) for shape in shapes.values()), site)
    release, sae_id = find_in_registry(str(source))
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    try:
        config = load_sae_config_from_huggingface(release, sae_id)
    except (OSError, ValueError) as error:
        raise SaeLoadError(f"the sizes of `{source}` cannot be fetched: {str(error).splitlines()[0]}") from error
    d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
    per_feature = 2 if config["architecture"] == "jumprelu" else 1
    return SaeSize(d_in, d_sae, 2 * d_in * d_sae + per_feature * d_sae + d_in, site or _site_in(config))


def _folder_size(path: Path, site: Site | None) -> SaeSize:
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(path / WEIGHTS_FILE, framework="pt") as file:
            names = list(file.keys())
            numbers = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        return SaeSize(int(config["d_in"]), int(config["d_sae"]), numbers, site or _site_in(config))
    except OSError as error:
        raise FileMissing(f"`{path}` has no {CONFIG_FILE} and {WEIGHTS_FILE} that can be read: {error}.") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedWeights(f"`{path}` is no whole SAELens folder: {error!r}. Copy it again.") from error


def _site_in(config: dict[str, object]) -> Site | None:
    metadata = config.get("metadata")
    named = (metadata if isinstance(metadata, dict) else {}).get("hook_name") or config.get("hook_name")
    try:
        return Site.from_hook_name(str(named))
    except BadSite:
        return None
