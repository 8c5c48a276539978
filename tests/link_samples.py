"""Random SAEs at any site of a tiny model, for tests of links."""

import math

import torch

from safe_sail.model.handle import HookedModel
from safe_sail.records import SaeRef
from safe_sail.sae.form import InputNorm, SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site

WIDTH = 7


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_sae(
    handle: HookedModel, site: Site, *, bias: float = 0.0, input_norm: InputNorm = "none", centre: bool = False,
    seed: int = 0,
) -> SAEHandle:  # fmt: skip
    """A relu SAE; with a large bias every feature fires everywhere, so activations are linear in what is read."""
    d_in = math.prod(handle.site_shape(site))
    weights = SaeWeights(
        W_enc=noise(d_in, WIDTH, seed=seed) / d_in**0.5, W_dec=noise(WIDTH, d_in, seed=seed + 1) / d_in**0.5,
        b_enc=torch.full((WIDTH,), bias), b_dec=0.3 * noise(d_in, seed=seed + 2),
    )  # fmt: skip
    ref = SaeRef(
        slug="tiny", release=None, sae_id="x", model_id=None, site=site, d_in=d_in, width=WIDTH, architecture="standard"
    )
    return SAEHandle(ref, weights, SaeForm(activation="relu", input_norm=input_norm, centre_input=centre))
