"""What features read linearly from the stream, and what every unit writes there: the direct path of one pass.

1. A feature's row is its encoder row; where the SAE centres its input the row is centred, and where it fixes the
   input's norm the row is scaled by each token's own factor, held fixed.
2. Every head and neuron that writes into the SAE's site is captured in one pass, together with the site itself.
3. At the token where the feature is nearest to firing, each unit's share of the pre-activation is its write along the
   row (`contributions`).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import BadSite
from safe_sail.links.contributions import fixed_scale, head_shares, neuron_shares, peak_tokens, values_at
from safe_sail.links.texts import TextPart
from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind

STREAM = (SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST)


class Shares(NamedTuple):
    """Direct shares of all units that write into the SAE's site, by the site of the unit."""

    by_site: dict[Site, Float[Tensor, "texts features units"]]
    """`head_out.L` and `mlp_act.L`; float32 on the CPU, in units of the pre-activation."""


def writing_sites(handle: HookedModel, site: Site) -> list[Site]:
    """Sites of the heads and neurons whose writes add up, with the embedding and the biases, to this site.

    Raises:
        BadSite: the site is not a sum of writes, so no unit has a direct share of what is read there.
    """
    layer = site.layer or 0
    kinds: dict[SiteKind, tuple[SiteKind, ...]] = {
        SiteKind.RESID_PRE: (),
        SiteKind.RESID_MID: (SiteKind.HEAD_OUT,),
        SiteKind.RESID_POST: (SiteKind.HEAD_OUT, SiteKind.MLP_ACT),
        SiteKind.ATTN_OUT: (SiteKind.HEAD_OUT,),
        SiteKind.MLP_OUT: (SiteKind.MLP_ACT,),
    }
    if site.kind not in kinds:
        raise BadSite(
            f"`{site}` is no sum of what heads and neurons write, so none has a direct share of it; direct shares are "
            f"read at the stream, `attn_out` and `mlp_out`."
        )
    before = range(layer) if site.kind in STREAM else range(0)
    found = [Site(kind, each) for each in before for kind in (SiteKind.HEAD_OUT, SiteKind.MLP_ACT)]
    found += [Site(kind, layer) for kind in kinds[site.kind]]
    return [one for one in found if handle.has_site(one)]


def sparse_layers(handle: HookedModel, site: Site) -> list[int]:
    """Layers before the site whose MLP is a mixture, so that its neurons have no share."""
    layers = range(min((site.layer or 0) + 1, handle.dims.n_layers))
    return [layer for layer in layers if block_is_sparse(handle.architecture, handle.blocks[layer])]


def encoder_rows(sae: SAEHandle, features: Iterable[int]) -> Float[Tensor, "features d_in"]:
    """Rows that the features read from the site's value, float32; centred where the SAE centres its input."""
    rows = torch.stack([sae.encoder_row(feature) for feature in features]).float()
    if sae.form.centre_input or sae.form.input_norm == "layer_norm":
        rows = rows - rows.mean(dim=-1, keepdim=True)
    return rows


def input_scale(sae: SAEHandle, x: Float[Tensor, "*axes d_in"]) -> Float[Tensor, "*axes"]:
    """Factor by which the SAE multiplies what it reads of each token; 1 unless it fixes norms."""
    wide = x.float()
    if sae.form.centre_input:
        wide = wide - wide.mean(dim=-1, keepdim=True)
    if sae.form.input_norm == "layer_norm":
        return 1 / (wide.std(dim=-1) + 1e-5)  # as SAELens divides
    if sae.form.input_norm == "constant_norm_rescale":
        scale: Tensor = sae.d_in**0.5 / wide.norm(dim=-1)
        return scale
    ones: Tensor = torch.ones_like(wide[..., 0])
    return ones


def peaks_of(
    sae: SAEHandle, x: Float[Tensor, "batch seq *unit"], features: Int[Tensor, " features"], part: TextPart
) -> Int[Tensor, "batch features"]:
    """Column where each feature is nearest to firing in each text."""
    return peak_tokens(sae.pre_activations(x, features), part.counted)


@torch.no_grad()
def direct_shares(
    handle: HookedModel, sae: SAEHandle, features: Int[Tensor, " features"], parts: Iterable[TextPart], n_texts: int
) -> Shares:
    """Share of every unit in every feature's pre-activation at its peak token, text by text.

    Raises:
        BadSite: the SAE reads a site that is no sum of writes.
    """
    sites = writing_sites(handle, sae.site)
    rows = encoder_rows(sae, features.tolist())
    found: dict[Site, Tensor] = {}
    for part in parts:
        outputs = _normed_outputs(handle, sites, sae.site)
        captured = handle.capture(part.batch, [*sites, *outputs, sae.site])
        x = captured[sae.site]
        peaks = peaks_of(sae, x, features, part)
        scale = input_scale(sae, values_at(x, peaks))
        for site in sites:
            shares = _shares_at(handle, site, captured, peaks, rows) * scale[..., None]
            whole = found.setdefault(site, torch.empty(n_texts, *shares.shape[1:]))
            whole[part.rows] = shares.float().cpu()
    return Shares(found)


def _normed_outputs(handle: HookedModel, sites: Iterable[Site], reads: Site) -> list[Site]:
    """Outputs of post-norms behind the units, which fix each token's scale."""
    if not handle.architecture.post_norm:
        return []
    return [one for one in map(output_of, sites) if one != reads]


def output_of(site: Site) -> Site:
    """Site where what a unit's site writes is added to the stream."""
    return Site(SiteKind.ATTN_OUT if site.kind is SiteKind.HEAD_OUT else SiteKind.MLP_OUT, site.layer)


def _shares_at(
    handle: HookedModel, site: Site, captured: dict[Site, Tensor], peaks: Tensor, rows: Tensor
) -> Float[Tensor, "batch features units"]:
    layer = site.layer or 0
    values = values_at(captured[site], peaks).float()
    is_head = site.kind is SiteKind.HEAD_OUT
    W = weights.W_O(handle, layer).float() if is_head else weights.mlp(handle, layer).W_out.float()
    gain = post_norm_gain(handle, site)
    read = rows.to(W.device) if gain is None else rows.to(W.device) * gain
    shares = head_shares(values, W, read) if is_head else neuron_shares(values, W, read)
    if gain is None:
        return shares
    bias = weights.b_O(handle, layer) if is_head else weights.mlp(handle, layer).b_out
    before = torch.einsum("bfhd,hdm->bfm", values, W) if is_head else values @ W
    before = before if bias is None else before + bias.float()
    after = values_at(captured[output_of(site)], peaks).float()
    return shares * fixed_scale(after, before * gain)[..., None]


def post_norm_gain(handle: HookedModel, site: Site) -> Float[Tensor, " d_model"] | None:
    """Gain of the norm between a unit's write and the stream, up to one factor; None where there is no such norm."""
    if not handle.architecture.post_norm:
        return None
    row = handle.architecture
    path = row.attn_out if site.kind is SiteKind.HEAD_OUT else row.mlp_out
    norm = handle.blocks[site.layer or 0].get_submodule(path)
    # A norm without centring maps ones to its gain times a number, whatever its parameter is called and means.
    ones = torch.ones(1, handle.dims.d_model, dtype=torch.float32, device=norm.get_parameter("weight").device)
    gain: Tensor = norm(ones)[0].float()
    return gain
