"""Loads an SAE from a SAELens folder, from SAELens' registry, or from a checkpoint of stacked tensors.

1. Tell the source apart: an existing folder, an existing file, a registry name `release/sae_id`.
2. Refuse what is unsafe, missing or damaged before a library reads it.
3. Let SAELens read weights and configuration, old versions included.
4. Translate the configuration key by key into a formula and a site; what cannot be honoured is an error.

SAELens costs seven seconds and a gigabyte to import, so it is imported inside the functions that need it.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from httpx2 import HTTPError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safe_sail.errors import (
    BadInput,
    DamagedWeights,
    FileMissing,
    SaeLoadError,
    SaeMetadataUnsupported,
    SaeModelMismatch,
    SaeWidthMismatch,
    UnsafeWeights,
)
from safe_sail.model.load import check_device
from safe_sail.sae.checkpoint import CheckpointForm, load_checkpoint
from safe_sail.sae.form import SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.metadata import BEFORE_GAIN, read_metadata, require_types, same_model, slug_of
from safe_sail.sites import Site, SiteKind

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

_CAN_RUN_CODE = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def load_sae(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    expect_model_id: str | None = None,
    d_site: int | None = None,
    site: Site | None = None,
    out_site: Site | None = None,
    slug: str | None = None,
    checkpoint: CheckpointForm | None = None,
    norm_gain: Float[Tensor, " d_in"] | None = None,
    norm_bias: Float[Tensor, " d_in"] | None = None,
) -> SAEHandle:
    """The SAE at a folder, a checkpoint file or a registry name (`gpt2-small-res-jb/blocks.8.hook_resid_pre`).

    `expect_model_id` and `d_site` are the model's id and the width of its site; given, they are compared with what the
    SAE was trained for. `site` and `out_site` stand in where the metadata's hook name is unknown or ambiguous, and may
    not contradict it. `checkpoint` is needed for a checkpoint file, which holds numbers only. `norm_gain` (for Gemma
    1 + weight) and `norm_bias` are those of the MLP's norm, for transcoders that read before them; they are folded in.

    Raises:
        FileMissing: the folder, the file or one of its two files does not exist.
        UnsafeWeights: the weights are in a format that can run code.
        DamagedWeights: the weights cannot be read, do not fit the configuration, or are not finite.
        SaeMetadataUnsupported: the metadata asks for what cannot be honoured.
        SaeModelMismatch: it was trained for another model.
        SaeWidthMismatch: it reads another width than the site's.
        SaeLoadError: the registry has no such name, or the hub could not be reached.
        DeviceUnavailable: this machine lacks the device.
        BadInput: the type is no floating point type, or the norm's gain does not fit.
    """
    check_device(device)
    if not dtype.is_floating_point:
        raise BadInput(f"an SAE computes in a floating point type; got {dtype}.")
    path = Path(source).expanduser()
    norm = None if norm_gain is None else (norm_gain, norm_bias)
    if path.is_dir():
        sae, name = _read_folder(path, device, dtype), path.resolve().name
        handle = _handle_of(sae, slug or slug_of(name), (None, name), (site, out_site), norm)
    elif path.is_file():
        if checkpoint is None or site is None or norm is not None:
            raise SaeMetadataUnsupported(
                f"`{path}` is a checkpoint file, which says neither its site nor its formula; give `site` and "
                f"`checkpoint` and no `norm_gain`, or the folder with {CONFIG_FILE} and {WEIGHTS_FILE}."
            )
        handle = load_checkpoint(path, checkpoint, site=site, slug=slug, device=device, dtype=dtype)
    elif isinstance(source, Path) or str(source).startswith(("/", ".", "~")) or "/" not in str(source):
        raise FileMissing(
            f"`{source}` does not exist; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, a checkpoint file, "
            f"or a registry name `release/sae_id`."
        )
    else:
        release, sae_id = find_in_registry(str(source))
        sae = _read_registry(release, sae_id, device, dtype)
        handle = _handle_of(sae, slug or slug_of(f"{release}.{sae_id}"), (release, sae_id), (site, out_site), norm)
    _require_model(handle, expect_model_id)
    _require_width(handle, d_site, expect_model_id)
    return handle


def find_in_registry(name: str) -> tuple[str, str]:
    """Release and SAE id of a registry name, from the list that SAELens carries; nothing is fetched.

    Raises:
        SaeLoadError: there is no such release or no such id in it; the message lists close names.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    releases = get_pretrained_saes_directory()
    release, _, sae_id = name.partition("/")
    if release not in releases:
        close = get_close_matches(release, releases, n=3)
        raise SaeLoadError(
            f"`{name}` is neither a folder here nor a SAELens release; `{release}` is not among its {len(releases)} "
            f"releases. {_close_names(close)}"
        )
    ids = releases[release].saes_map
    if sae_id not in ids:
        close = get_close_matches(sae_id, ids, n=3, cutoff=0.4) or list(ids)[:3]
        raise SaeLoadError(f"release `{release}` has {len(ids)} SAEs, none called `{sae_id}`. {_close_names(close)}")
    return release, sae_id


def _close_names(names: list[str]) -> str:
    return f"Close names: {', '.join(names)}." if names else "No name is close to it."


# 2. refuse before a library reads


def _read_folder(path: Path, device: torch.device | str, dtype: torch.dtype) -> Any:
    config_path, weights_path = path / CONFIG_FILE, path / WEIGHTS_FILE
    if not weights_path.is_file():
        unsafe = sorted(p.name for p in path.iterdir() if p.suffix in _CAN_RUN_CODE)
        if unsafe:
            raise UnsafeWeights(
                f"`{path}` holds {', '.join(unsafe)}, a format that can run code, and no {WEIGHTS_FILE}; convert it to "
                f"safetensors where it was made."
            )
        raise FileMissing(f"`{path}` has no {WEIGHTS_FILE}; a SAELens folder holds it beside {CONFIG_FILE}.")
    if not config_path.is_file():
        raise FileMissing(f"`{path}` has no {CONFIG_FILE}; a SAELens folder holds it beside {WEIGHTS_FILE}.")
    config = _read_config(config_path)
    _require_known_formula(path, config)
    try:
        with safe_open(weights_path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise DamagedWeights(
            f"`{weights_path}` is not a whole safetensors file ({error}; {weights_path.stat().st_size} bytes); copy it "
            f"again."
        ) from error
    return _read_with_saelens(path, config, names, device, dtype)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SaeMetadataUnsupported(f"`{path}` is not JSON: {error}.") from error
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= config.keys():
        raise SaeMetadataUnsupported(f"`{path}` is no SAELens configuration; expected an object with d_in and d_sae.")
    require_types(config, f"`{path}`")
    return config


def _require_known_formula(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what versions before 6 could ask for and SAELens now drops without a word."""
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if activation not in ("relu", "topk"):
        raise SaeMetadataUnsupported(
            f"`{path}` asks for the activation function `{activation}`; expected relu or topk."
        )
    if config.get("finetuning_scaling_factor"):
        raise SaeMetadataUnsupported(
            f"`{path}` asks for a finetuning_scaling_factor, which SAELens no longer applies; fold it into W_dec."
        )


# 3. let SAELens read


def _read_with_saelens(
    path: Path, config: Mapping[str, Any], names: set[str], device: torch.device | str, dtype: torch.dtype
) -> Any:
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY

    architecture = config.get("architecture", "standard")
    if architecture not in SAE_CLASS_REGISTRY:
        raise SaeMetadataUnsupported(
            f"`{path}` is a `{architecture}` SAE; SAELens knows {', '.join(sorted(SAE_CLASS_REGISTRY))}. Training "
            f"folders are saved for use by `save_inference_model`."
        )
    with warnings.catch_warnings():
        # SAELens asks to load the model with these very settings; read_metadata honours or refuses them
        warnings.filterwarnings("ignore", message="(?s).*model_from_pretrained_kwargs.*", category=UserWarning)
        try:
            return SAE.load_from_disk(path, device=str(device), dtype=str(dtype).removeprefix("torch."))
        except RuntimeError as error:
            raise DamagedWeights(
                f"the tensors of `{path}` ({', '.join(sorted(names))}) do not fit its {CONFIG_FILE}, a "
                f"`{architecture}` SAE {config['d_in']} wide with {config['d_sae']} features: {error}"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SaeMetadataUnsupported(f"SAELens refuses the {CONFIG_FILE} of `{path}`: {error}") from error


def _read_registry(release: str, sae_id: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    from sae_lens import SAE

    with warnings.catch_warnings():
        # both are about metadata that read_metadata honours or refuses itself
        warnings.filterwarnings("ignore", message="(?s).*model_from_pretrained_kwargs.*", category=UserWarning)
        warnings.filterwarnings("ignore", message="norm_scaling_factor not found.*", category=UserWarning)
        try:
            return SAE.from_pretrained(release, sae_id, device=str(device), dtype=str(dtype).removeprefix("torch."))
        except (OSError, HTTPError) as error:
            raise SaeLoadError(
                f"`{release}/{sae_id}` could not be fetched from the model hub ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Connect, or give the folder of a copy."
            ) from error
        except (RuntimeError, SafetensorError) as error:
            raise DamagedWeights(f"the files of `{release}/{sae_id}` do not fit its configuration: {error}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SaeMetadataUnsupported(f"SAELens refuses `{release}/{sae_id}`: {error}") from error


# 4. translate


def _handle_of(
    sae: Any,
    slug: str,
    origin: tuple[str | None, str],
    sites: tuple[Site | None, Site | None],
    norm: tuple[Tensor, Tensor | None] | None,
) -> SAEHandle:
    config = sae.cfg.to_dict()
    tensors = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    unknown = sorted(set(tensors) - set(SaeWeights.__dataclass_fields__))
    site, notes = sites[0], []
    if norm is not None:
        before_gain = BEFORE_GAIN.fullmatch(str(config["metadata"].get("hook_name")))
        if before_gain is None or "transcoder" not in str(config["architecture"]):
            raise SaeMetadataUnsupported(
                f"SAE {slug} takes no norm_gain: it is no transcoder that reads before a gain."
            )
        site = site or Site(SiteKind.MLP_IN, int(before_gain[1]))
        notes.append("Its encoder was divided by the gain of the norm before the MLP; it was trained before that gain.")
    if origin[0] is not None and "clt" in f"{origin[0]}/{origin[1]}":
        notes.append(
            "It is one layer of a cross-layer transcoder; what it writes is a sum over the layers it writes to."
        )
    metadata = read_metadata(config, slug=slug, release=origin[0], sae_id=origin[1], site=site, out_site=sites[1])
    if unknown:
        raise SaeMetadataUnsupported(f"SAE {slug} has tensors whose meaning is not known: {', '.join(unknown)}.")
    weights = SaeWeights(**tensors)
    return SAEHandle(
        metadata.ref,
        weights if norm is None else _folded(weights, *norm, slug=slug),
        metadata.form,
        out_site=metadata.out_site,
        prepend_bos=metadata.prepend_bos,
        context_size=metadata.context_size,
        notes=(*metadata.notes, *notes),
    )


def _folded(weights: SaeWeights, gain: Tensor, bias: Tensor | None, *, slug: str) -> SaeWeights:
    """The same transcoder reading after the norm: with x = gain * y + bias, y W = (x - bias) (W / gain)."""
    shape = weights.W_enc.shape[:1]
    if gain.shape != shape or (bias is not None and bias.shape != shape) or bool((gain == 0).any()):
        raise BadInput(
            f"SAE {slug}: the norm's gain and bias are {shape[0]} numbers, no gain 0; got {list(gain.shape)}."
        )
    gain = gain.detach().to(weights.W_enc)
    shift = torch.zeros_like(gain) if bias is None else bias.detach().to(weights.W_enc)
    W_enc = weights.W_enc / gain[:, None]
    assert weights.b_enc is not None
    skip = weights.W_skip
    if skip is None:
        return replace(weights, W_enc=W_enc, b_enc=weights.b_enc - shift @ W_enc)
    skip = skip / gain
    return replace(
        weights, W_enc=W_enc, b_enc=weights.b_enc - shift @ W_enc, W_skip=skip, b_dec=weights.b_dec - skip @ shift
    )


def _require_model(handle: SAEHandle, expected: str | None) -> None:
    trained_for = handle.ref.model_id
    if expected is None or trained_for is None or same_model(expected, trained_for):
        return
    raise SaeModelMismatch(
        f"SAE {handle.ref.slug} was trained for `{trained_for}`, the model is `{expected}`. Load that model, or pass "
        f"no expected model to use it on another one on purpose."
    )


def _require_width(handle: SAEHandle, d_site: int | None, model_id: str | None) -> None:
    if d_site is None or d_site == handle.d_in:
        return
    raise SaeWidthMismatch(
        f"`{handle.site}` of {model_id or 'the model'} is {d_site} wide, SAE {handle.ref.slug} expects {handle.d_in}. "
        f"It was trained for {'another model' if handle.ref.model_id is None else f'`{handle.ref.model_id}`'}."
    )
