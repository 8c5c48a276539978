"""Loads the checkpoint form of the released Safe-SAIL encoders: several SAEs stacked in one file of tensors.

1. Open the file: safetensors, or a zipped torch file of plain tensors.
2. Cut the asked SAE out of the leading model axis.
3. Turn its tensors into SAELens' names and orientation.

Source: `sae.py` of the Safe-SAIL release, arXiv 2509.18127, MIT licence. Its loader reads no decoder; where a file has
one, its bias is tied to the bias before the encoder unless the file holds its own.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safe_sail.errors import DamagedWeights, SaeMetadataUnsupported, UnsafeWeights
from safe_sail.records import SaeRef
from safe_sail.sae.form import Activation, SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.metadata import slug_of
from safe_sail.sites import Site

_PRE_BIAS: Final = "pre_encoder_bias._bias_reference"
_ENCODER, _ENCODER_BIAS, _THETA = "encoder.weight", "encoder.bias", "encoder.theta"
_DECODER, _POST_BIAS = "decoder.weight", "post_decoder_bias._bias_reference"
_AXES: Final = {_PRE_BIAS: 2, _ENCODER: 3, _ENCODER_BIAS: 2, _THETA: 2, _DECODER: 3, _POST_BIAS: 2}
"""Number of axes of each tensor, the model axis included."""

_ACTIVATIONS: Final[dict[str, Activation]] = {"topk": "topk_with_ties", "relu": "relu", "jumprelu": "jump"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointForm:
    """What a checkpoint file does not say about itself."""

    activation: Literal["topk", "relu", "jumprelu"] = "topk"
    """topk: entries at or above the k-th largest pre-activation, ties kept, then relu."""
    k: int = 200
    """For topk; 200 is the released configuration's."""
    model_index: int = 0
    """Which of the stacked SAEs; the release uses the first."""
    model_id: str | None = None
    """Model it was trained for; `Qwen2.5-3B-Instruct` for the released ones."""


def load_checkpoint(
    path: Path,
    form: CheckpointForm,
    *,
    site: Site,
    slug: str | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> SAEHandle:
    """The SAE of a stacked checkpoint.

    Raises:
        UnsafeWeights: the file holds something else than tensors, or is in an old format that can run code.
        DamagedWeights: the file is truncated, or its tensors are missing or do not fit each other.
        SaeMetadataUnsupported: the model index or the activation has nothing in the file.
    """
    tensors = _read_stacked(path, form.model_index)
    needed = [_PRE_BIAS, _ENCODER, _ENCODER_BIAS] + ([_THETA] if form.activation == "jumprelu" else [])
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise DamagedWeights(
            f"`{path}` lacks {', '.join(missing)}; a checkpoint of `{form.activation}` SAEs holds {', '.join(needed)}, "
            f"each with a leading model axis."
        )
    weights, subtract = _weights_of(tensors, with_threshold=form.activation == "jumprelu")
    return SAEHandle(
        SaeRef(
            slug=slug or slug_of(f"{path.stem}.{site}"),
            release=None,
            sae_id=path.name,
            model_id=form.model_id,
            site=site,
            d_in=weights.W_enc.shape[0],
            width=weights.W_enc.shape[1],
            architecture=f"safe-sail-{form.activation}",
        ),
        weights.to(device, dtype),
        SaeForm(
            activation=_ACTIVATIONS[form.activation],
            k=form.k if form.activation == "topk" else None,
            subtract_b_dec=subtract,
        ),
    )


def _weights_of(tensors: dict[str, Tensor], *, with_threshold: bool) -> tuple[SaeWeights, bool]:
    """Tensors in SAELens' orientation, and whether b_dec is subtracted from the input."""
    W_enc, b_enc, b_pre = tensors[_ENCODER].T, tensors[_ENCODER_BIAS], tensors[_PRE_BIAS]
    b_post = tensors.get(_POST_BIAS, b_pre)
    tied = torch.equal(b_pre, b_post)
    if not tied:
        # W (x - b_pre) + b_enc = W x + (b_enc - W b_pre), so that b_dec can be the decoder's own
        b_enc = (b_enc.double() - b_pre.double() @ W_enc.double()).to(b_enc.dtype)
    weights = SaeWeights(
        W_enc=W_enc.contiguous(),
        b_enc=b_enc,
        b_dec=b_post,
        W_dec=tensors[_DECODER].T.contiguous() if _DECODER in tensors else None,
        threshold=tensors[_THETA] if with_threshold else None,
    )
    return weights, tied


def stacked_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a checkpoint file, model axis first; no weight is read.

    Raises:
        UnsafeWeights: the file holds something else than tensors, or is in an old format that can run code.
        DamagedWeights: the file is truncated, or lacks the encoder.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise DamagedWeights(f"`{path}` is not a whole safetensors file ({error}); copy it again.") from error
    else:
        shapes = {name: list(tensor.shape) for name, tensor in _read_torch_file(path).items()}
    shapes = {name: shape for name, shape in shapes.items() if name in _AXES}
    _require_stack(path, shapes, 0)
    if _ENCODER not in shapes:
        raise DamagedWeights(f"`{path}` lacks {_ENCODER}; expected a checkpoint of stacked SAEs.")
    return shapes


def _read_stacked(path: Path, model_index: int) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                stacked = {name: file.get_slice(name) for name in file.keys() if name in _AXES}  # noqa: SIM118
                shapes = {name: list(part.get_shape()) for name, part in stacked.items()}
                _require_stack(path, shapes, model_index)
                return {name: part[model_index] for name, part in stacked.items()}
        except SafetensorError as error:
            raise DamagedWeights(f"`{path}` is not a whole safetensors file ({error}); copy it again.") from error
    tensors = {name: tensor for name, tensor in _read_torch_file(path).items() if name in _AXES}
    _require_stack(path, {name: list(tensor.shape) for name, tensor in tensors.items()}, model_index)
    return {name: tensor[model_index] for name, tensor in tensors.items()}


def _require_stack(path: Path, shapes: dict[str, list[int]], model_index: int) -> None:
    for name, shape in shapes.items():
        if len(shape) != _AXES[name]:
            raise DamagedWeights(
                f"`{path}`: {name} must have {_AXES[name]} axes with the model axis first; its shape is {shape}."
            )
        if not 0 <= model_index < shape[0]:
            raise SaeMetadataUnsupported(
                f"`{path}` stacks {shape[0]} SAEs; model_index must be 0 to {shape[0] - 1}, got {model_index}."
            )


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a zipped torch file. The one door for this format: the released encoders exist in no other."""
    if not zipfile.is_zipfile(path):
        raise UnsafeWeights(
            f"`{path}` is neither safetensors nor a whole zipped torch file; older formats can run code and a cut "
            f"file lacks its directory. Copy it again, or convert it to safetensors where it was made."
        )
    try:
        # weights_only builds tensors and plain containers and refuses every other class; mmap keeps the file on disk
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251
    except Exception as error:
        # the refusal's class lives in a module that this project does not import
        if type(error).__name__ == "UnpicklingError":
            raise UnsafeWeights(
                f"`{path}` holds something else than tensors; only a mapping from names to tensors is read. Convert it "
                f"to safetensors where it was made."
            ) from error
        raise DamagedWeights(f"`{path}` cannot be read as a torch file: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UnsafeWeights(f"`{path}` holds {type(loaded).__name__}; expected a mapping from names to tensors alone.")
    return loaded
