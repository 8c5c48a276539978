"""What an SAE is made of: its formula and its numbers, checked against each other before anything is computed."""

from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import DamagedWeights, SaeMetadataUnsupported
from safe_sail.records import SaeRef

Activation = Literal["relu", "jumprelu", "jump", "gated", "topk", "topk_with_ties", "abstopk"]
"""`jumprelu` is relu(h) where h > threshold; `jump` is h where h > threshold, which differs for negative thresholds."""

InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]

NEEDS_ALL_FEATURES = ("topk", "topk_with_ties", "abstopk")
"""Activation functions that cut over all features of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeForm:
    """The formula of an SAE, apart from its numbers."""

    activation: Activation
    k: int | None = None
    """Features kept per token, for the topk forms."""
    subtract_b_dec: bool = True
    """Whether b_dec is subtracted from the input (SAELens' `apply_b_dec_to_input`)."""
    rescale_by_decoder_norm: bool = False
    """Whether pre-activations are multiplied by the decoder rows' norms, and activations divided by them to decode."""
    input_norm: InputNorm = "none"
    """How the input's norm is fixed before encoding; undone after decoding, except by transcoders."""
    centre_input: bool = False
    """Whether the input's mean over d_model is removed: the SAE was trained on a model with centred writing weights."""
    head: int | None = None
    """The one head that is read, counted from 0; None reads all heads of a `head_out` site side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeWeights:
    """The numbers of an SAE, in SAELens' names and orientation."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_dec: Float[Tensor, " d_out"]
    b_enc: Float[Tensor, " d_sae"] | None = None
    """None for gated ones."""
    W_dec: Float[Tensor, "d_sae d_out"] | None = None
    """None where a release left the decoder out."""
    threshold: Float[Tensor, " d_sae"] | None = None
    b_gate: Float[Tensor, " d_sae"] | None = None
    b_mag: Float[Tensor, " d_sae"] | None = None
    r_mag: Float[Tensor, " d_sae"] | None = None
    """Logarithm of the magnitude path's scale."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    """Skip connection of a transcoder."""

    def present(self) -> dict[str, Tensor]:
        """The tensors that this SAE has, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same numbers elsewhere or in another precision."""
        return type(self)(**{name: t.detach().to(device=device, dtype=dtype) for name, t in self.present().items()})


def require_fit(ref: SaeRef, weights: SaeWeights, form: SaeForm) -> None:
    """Refuses tensors that do not fit each other, the record or the formula.

    Raises:
        DamagedWeights: a tensor is missing, has another shape, or holds NaN or infinite numbers.
        SaeMetadataUnsupported: the formula contradicts itself.
    """
    if weights.W_enc.ndim != 2 or weights.b_dec.ndim != 1:
        raise DamagedWeights(
            f"SAE {ref.slug}: expected W_enc [d_in, d_sae] and b_dec [d_out], got {list(weights.W_enc.shape)} and "
            f"{list(weights.b_dec.shape)}."
        )
    (d_in, d_sae), (d_out,) = weights.W_enc.shape, weights.b_dec.shape
    expected = {"W_dec": [d_sae, d_out], "W_skip": [d_out, d_in], "W_enc": [ref.d_in, ref.width], "b_dec": [d_out]}
    for name, tensor in weights.present().items():
        shape = expected.get(name, [d_sae])
        if list(tensor.shape) != shape:
            raise DamagedWeights(f"SAE {ref.slug}: {name} must be {shape}, got {list(tensor.shape)}.")
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise DamagedWeights(f"SAE {ref.slug}: {count} of {tensor.numel()} numbers of {name} are NaN or infinite.")
    needed = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold"), "jump": ("b_enc", "threshold")}
    for name in needed.get(form.activation, ("b_enc",)):
        if getattr(weights, name) is None:
            raise DamagedWeights(f"SAE {ref.slug} is `{form.activation}` and lacks its tensor {name}.")
    if form.activation in NEEDS_ALL_FEATURES and not (form.k is not None and 0 < form.k <= d_sae):
        raise SaeMetadataUnsupported(f"SAE {ref.slug} is `{form.activation}`: k must be 1 to {d_sae}, got {form.k}.")
    if form.subtract_b_dec and d_in != d_out:
        raise SaeMetadataUnsupported(
            f"SAE {ref.slug} subtracts its output bias ({d_out} wide) from its input ({d_in} wide): impossible."
        )
    if form.rescale_by_decoder_norm and weights.W_dec is None:
        raise SaeMetadataUnsupported(f"SAE {ref.slug} rescales by decoder norms and was released without a decoder.")
