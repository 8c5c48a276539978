"""A sparse autoencoder (SAE) that knows where it reads, what it expects there, and how to encode a part of itself.

1. Prepare the input: heads flattened or picked, mean removed, norm fixed, bias subtracted; each as the form says.
2. Pre-activations of all features, or only of the asked ones.
3. The activation function: relu, jumprelu, gated, or a cut over all features (topk, abstopk).
4. Decode, and undo what step 1 did to the input.

The formulas stand here once, because no library offers step 2 for a part of the features; `tests/witnesses/test_sae.py`
holds every architecture equal to SAELens' own objects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import BadInput, SaeMetadataUnsupported, SaeWidthMismatch
from safe_sail.records import SaeRef
from safe_sail.sae.form import NEEDS_ALL_FEATURES, SaeForm, SaeWeights, require_fit
from safe_sail.sites import Site, SiteKind


class SparseCode(NamedTuple):
    """The features that a topk form kept."""

    values: Float[Tensor, "*axes k"]
    """Activations, descending (ties: torch.topk's order)."""
    indices: Int[Tensor, "*axes k"]
    """Which features they are; a value of 0 names a feature that was kept and does not fire."""


class SAEHandle:
    """One sparse autoencoder, ready to encode what its site yields. Final; no weight takes part in gradients."""

    __slots__ = ("_norms", "_weights", "context_size", "form", "notes", "out_site", "prepend_bos", "ref")

    def __init__(
        self,
        ref: SaeRef,
        weights: SaeWeights,
        form: SaeForm,
        *,
        out_site: Site | None = None,
        prepend_bos: bool | None = None,
        context_size: int | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        require_fit(ref, weights, form)
        self.ref = ref
        self.form = form
        self.out_site = out_site if out_site is not None else ref.site
        """Where it writes: its own site, or another for transcoders."""
        self.prepend_bos = prepend_bos
        """Whether its training texts began with the model's start token; None where its metadata is silent."""
        self.context_size = context_size
        """Tokens per training text; None where its metadata is silent."""
        self.notes = tuple(notes)
        """What a reader of its results must know, as sentences."""
        self._weights = weights.to()
        self._norms = weights.W_dec.norm(dim=-1) if form.rescale_by_decoder_norm and weights.W_dec is not None else None

    def __repr__(self) -> str:
        return f"SAEHandle({self.ref.slug}: {self.ref.architecture}, {self.ref.site}, {self.d_in} -> {self.d_sae})"

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.ref.site

    @property
    def d_in(self) -> int:
        """Width of what it reads; n_heads * d_head at a `head_out` site, d_head where it reads one head."""
        return self._weights.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self._weights.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes; d_in except for transcoders."""
        return self._weights.b_dec.shape[0]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._weights.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which it computes; inputs are converted to it."""
        return self._weights.W_enc.dtype

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another site than the one it reads."""
        return self.out_site != self.site

    @property
    def has_decoder(self) -> bool:
        """False where a release left the decoder out: then it encodes and does nothing else."""
        return self._weights.W_dec is not None

    @property
    def subset_is_cheap(self) -> bool:
        """True where encoding a part of the features costs that part; the topk forms compute all for their cut."""
        return self.form.activation not in NEEDS_ALL_FEATURES

    @property
    def decode_needs_input(self) -> bool:
        """Whether a decoded activation lacks something that only the input knows; then use `reconstruct`."""
        undo = self.form.centre_input or self.form.input_norm != "none"
        return self._weights.W_skip is not None or (undo and not self.is_transcoder)

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """What one unit of each feature's activation adds to the output; rows are not normalised.

        Raises:
            SaeMetadataUnsupported: the release has no decoder.
        """
        if self._weights.W_dec is None:
            raise SaeMetadataUnsupported(
                f"SAE {self.ref.slug} was released without a decoder; it can encode, but neither decode nor write."
            )
        return self._weights.W_dec if self._norms is None else self._weights.W_dec / self._norms[:, None]

    def decoder_row(self, feature: int) -> Float[Tensor, " d_out"]:
        """What one unit of this feature's activation adds to the output."""
        self._require_features(torch.tensor([feature]))
        row = self.decoder[feature] if self._norms is None else self._decoder_row_rescaled(feature)
        return row.clone()

    def encoder_row(self, feature: int) -> Float[Tensor, " d_in"]:
        """Direction whose product with the prepared input is this feature's pre-activation, apart from the bias."""
        self._require_features(torch.tensor([feature]))
        row = self._weights.W_enc[:, feature]
        return row.clone() if self._norms is None else row * self._norms[feature]

    def encode(
        self, x: Float[Tensor, "..."], features: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "*axes features"]:
        """Activations of all features, or of the asked ones in their order.

        x is what the site yields, [..., d_in]; at a `head_out` site [..., n_heads, d_head]. A subset equals the same
        columns of the full result up to rounding of the matrix product.

        Raises:
            SaeWidthMismatch: x is not as wide as the SAE's input.
            BadInput: a feature index is outside the SAE.
        """
        if features is not None:
            self._require_features(features)
            features = features.to(self.device)
        prepared = self._prepare(x)
        if features is not None and not self.subset_is_cheap:
            return self._activate(prepared, None)[..., features]
        return self._activate(prepared, features)

    def pre_activations(
        self, x: Float[Tensor, "..."], features: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "*axes features"]:
        """What the activation function is given; of gated SAEs what opens the gate. Linear in the prepared input."""
        if features is not None:
            self._require_features(features)
            features = features.to(self.device)
        return self._pre_activation(self._prepare(x), features)

    def encode_topk(self, x: Float[Tensor, "..."]) -> SparseCode:
        """The k features that the cut kept, per token; for the topk forms without ties.

        Raises:
            SaeMetadataUnsupported: the SAE has no fixed number of active features.
        """
        if self.form.activation not in ("topk", "abstopk") or self.form.k is None:
            raise SaeMetadataUnsupported(
                f"SAE {self.ref.slug} is `{self.form.activation}`: it keeps no fixed number of features; use `encode`."
            )
        hidden = self._pre_activation(self._prepare(x), None)
        if self.form.activation == "topk":
            values, indices = hidden.topk(self.form.k, dim=-1)
            return SparseCode(values.relu(), indices)
        indices = hidden.abs().topk(self.form.k, dim=-1).indices
        return SparseCode(hidden.gather(-1, indices), indices)

    def decode(self, activations: Float[Tensor, "*axes d_sae"]) -> Float[Tensor, "*axes d_out"]:
        """What the activations add up to with the output bias, heads side by side.

        Where `decode_needs_input` is true this is not yet in the site's own units: `reconstruct` is.

        Raises:
            SaeMetadataUnsupported: the release has no decoder.
            SaeWidthMismatch: there are more or fewer activations than features.
        """
        if activations.shape[-1] != self.d_sae:
            raise SaeWidthMismatch(
                f"SAE {self.ref.slug} decodes {self.d_sae} activations per token, got {activations.shape[-1]}."
            )
        decoder = self.decoder if self._norms is None else self._weights.W_dec
        assert decoder is not None
        activations = activations.to(self.dtype)
        if self._norms is not None:
            activations = activations * (1 / self._norms)
        return activations @ decoder + self._weights.b_dec

    def reconstruct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the SAE puts in place of its output site's value, in that site's units and (but for transcoders) shape.

        Raises:
            SaeWidthMismatch: x is not as wide as the SAE's input.
            SaeMetadataUnsupported: the release has no decoder.
        """
        read = self._read(x)
        out = self.decode(self._activate(self._prepare(x), None))
        if self.is_transcoder:
            return out if self._weights.W_skip is None else out + read @ self._weights.W_skip.T
        centred = self._centre(read)
        if self.form.input_norm == "layer_norm":
            mean = centred.mean(dim=-1, keepdim=True)
            out = out * (centred - mean).std(dim=-1, keepdim=True) + mean
        elif self.form.input_norm == "constant_norm_rescale":
            out = out / (self.d_in**0.5 / centred.norm(dim=-1, keepdim=True))
        if self.form.centre_input:
            out = out + read.mean(dim=-1, keepdim=True)
        if self.site.kind is not SiteKind.HEAD_OUT:
            return out
        if self.form.head is None:
            return out.reshape(x.shape)
        whole = x.to(self.dtype, copy=True)
        whole[..., self.form.head, :] = out
        return whole

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SAEHandle":
        """The same SAE elsewhere or in another precision; this one stays as it is."""
        return SAEHandle(
            self.ref,
            self._weights.to(device, dtype),
            self.form,
            out_site=self.out_site,
            prepend_bos=self.prepend_bos,
            context_size=self.context_size,
            notes=self.notes,
        )

    # 1. prepare the input

    def _read(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.site.kind is SiteKind.HEAD_OUT and x.ndim >= 2:
            if self.form.head is None:
                x = x.flatten(-2)
            elif self.form.head < x.shape[-2]:
                x = x[..., self.form.head, :]
            else:
                raise SaeWidthMismatch(
                    f"SAE {self.ref.slug} reads head {self.form.head}; the input has {x.shape[-2]} heads."
                )
        if x.shape[-1] != self.d_in:
            raise SaeWidthMismatch(
                f"SAE {self.ref.slug} reads `{self.site}` {self.d_in} wide, got {x.shape[-1]} "
                f"(input shape {list(x.shape)}). Load the SAE that was trained for this model and site."
            )
        return x

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True) if self.form.centre_input else x

    def _prepare(self, x: Tensor) -> Tensor:
        x = self._centre(self._read(x))
        if self.form.input_norm == "layer_norm":
            x = x - x.mean(dim=-1, keepdim=True)
            x = x / (x.std(dim=-1, keepdim=True) + 1e-5)  # SAELens: sample deviation, and 1e-5 outside of it
        elif self.form.input_norm == "constant_norm_rescale":
            x = x * (self.d_in**0.5 / x.norm(dim=-1, keepdim=True))
        return x - self._weights.b_dec if self.form.subtract_b_dec else x

    # 2. and 3. features

    def _pre_activation(self, prepared: Tensor, features: Tensor | None) -> Tensor:
        weights, norms = self._weights, self._norms
        bias = weights.b_gate if weights.b_enc is None else weights.b_enc
        assert bias is not None
        W_enc = weights.W_enc
        if features is not None:
            W_enc, bias, norms = W_enc[:, features], bias[features], None if norms is None else norms[features]
        hidden = prepared @ W_enc + bias
        return hidden if norms is None else hidden * norms

    def _activate(self, prepared: Tensor, features: Tensor | None) -> Tensor:
        kind, k, weights = self.form.activation, self.form.k, self._weights
        if kind == "gated":
            return self._activate_gated(prepared, features)
        hidden = self._pre_activation(prepared, features)
        if kind == "relu":
            return hidden.relu()
        if kind in ("jumprelu", "jump"):
            assert weights.threshold is not None
            threshold = weights.threshold if features is None else weights.threshold[features]
            return (hidden.relu() if kind == "jumprelu" else hidden) * (hidden > threshold).to(hidden.dtype)
        assert k is not None
        if kind == "topk_with_ties":
            smallest_kept = hidden.topk(k, dim=-1).values[..., -1:]
            return torch.where(hidden >= smallest_kept, hidden, 0).relu()
        kept = (hidden.abs() if kind == "abstopk" else hidden).topk(k, dim=-1, sorted=False).indices
        values = hidden.gather(-1, kept)
        return torch.zeros_like(hidden).scatter(-1, kept, values if kind == "abstopk" else values.relu())

    def _activate_gated(self, prepared: Tensor, features: Tensor | None) -> Tensor:
        weights = self._weights
        b_gate, b_mag, r_mag = weights.b_gate, weights.b_mag, weights.r_mag
        assert b_gate is not None
        assert b_mag is not None
        assert r_mag is not None
        W_enc = weights.W_enc
        if features is not None:
            W_enc, b_gate, b_mag, r_mag = W_enc[:, features], b_gate[features], b_mag[features], r_mag[features]
        is_open = (prepared @ W_enc + b_gate > 0).to(prepared.dtype)
        return is_open * (prepared @ (W_enc * r_mag.exp()) + b_mag).relu()

    def _decoder_row_rescaled(self, feature: int) -> Tensor:
        W_dec, norms = self._weights.W_dec, self._norms
        assert W_dec is not None
        assert norms is not None
        row: Tensor = W_dec[feature] / norms[feature]
        return row

    def _require_features(self, features: Tensor) -> None:
        if features.numel() and not 0 <= int(features.min()) <= int(features.max()) < self.d_sae:
            raise BadInput(
                f"features of SAE {self.ref.slug} are 0 to {self.d_sae - 1}; asked for {int(features.min())} to "
                f"{int(features.max())}."
            )
