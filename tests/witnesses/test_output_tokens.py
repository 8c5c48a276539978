"""Tokens that features write, against the whole model whose last stream is the feature's row alone."""

import pytest
import torch

from safe_sail.errors import BadInput
from safe_sail.features.output_tokens import output_logits, output_tokens
from safe_sail.model.handle import HookedModel
from safe_sail.records import SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site
from tests.tiny import TinyModels

N = 6


def sae_at(model: HookedModel, site: str, d_in: int) -> SAEHandle:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(N, d_in, generator=generator)
    ref = SaeRef(
        slug="s", release=None, sae_id="x", model_id=None, site=Site.parse(site), d_in=d_in, width=N,
        architecture="standard",
    )  # fmt: skip
    weights = SaeWeights(W_enc=W_dec.T.contiguous(), b_enc=torch.zeros(N), W_dec=W_dec, b_dec=torch.zeros(d_in))
    return SAEHandle(ref, weights, SaeForm(activation="relu"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "olmo2"])
def test_a_stream_that_is_the_row_alone_gives_the_tokens_that_it_promotes(family: str, tiny_models: TinyModels):
    model = tiny_models.handle(family)
    site = Site.parse(f"resid_post.{model.dims.n_layers - 1}")
    sae = sae_at(model, str(site), model.dims.d_model)
    batch = model.batch(["the cat sat"])
    found = output_tokens(model, sae, range(N), n=3)
    for feature in range(N):
        row = 1e4 * sae.decoder_row(feature)
        plus, minus = (
            model.logits(batch, {site: lambda x, d=d: x * 0 + d})[0, -1, : len(model.tokenizer)] for d in (row, -row)
        )
        by_model = plus - minus
        ours = output_logits(model, sae, [feature])[0, : len(model.tokenizer)]
        assert torch.corrcoef(torch.stack([by_model, ours]))[0, 1] > 0.999
        promoted = model.tokenizer.decode([int(by_model.argmax())])
        assert found[feature].promotes[0] == promoted
        assert found[feature].suppresses[0] == model.tokenizer.decode([int(by_model.argmin())])


def test_an_sae_that_writes_elsewhere_is_refused(tiny_models: TinyModels):
    model = tiny_models.handle("llama")
    sae = sae_at(model, "mlp_act.0", model.dims.d_mlp)
    with pytest.raises(BadInput, match=r"writes at mlp_act\.0"):
        output_tokens(model, sae, [0], n=2)
