"""Next tokens that features make likelier or less likely: what their decoder rows write, read by the unembedding.

1. The decoder row d passes the final norm as a direction: (norm(d) - norm(-d)) / 2. For an RMS norm that is gain times
   d, for a layer norm gain times the centred d, without the bias, up to a factor.
2. Its products with the unembedding are the tokens' logits, up to the scale that the rest of the stream decides.

Blocks between the SAE's site and the end are passed by: this is the direct path alone.

Source: logit lens of a direction, nostalgebraist 2020; shown beside features by Neuronpedia.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.model.handle import HookedModel
from safe_sail.model.weights import W_U
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import SiteKind

_WRITES_TO_STREAM = frozenset(
    {
        SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST, SiteKind.ATTN_OUT, SiteKind.MLP_OUT,
        SiteKind.EMBED,
    }
)  # fmt: skip


class OutputTokens(NamedTuple):
    """What one feature writes, as tokens."""

    promotes: tuple[str, ...]
    """Made likelier, strongest first."""
    suppresses: tuple[str, ...]
    """Made less likely, strongest first."""


@torch.no_grad()
def output_logits(model: HookedModel, sae: SAEHandle, features: Sequence[int]) -> Float[Tensor, "feature d_vocab"]:
    """Logits that each feature writes, float32, up to a positive factor of the feature.

    Raises:
        BadInput: the SAE does not write into the residual stream.
        SaeMetadataUnsupported: the SAE has no decoder.
    """
    if sae.out_site.kind not in _WRITES_TO_STREAM or sae.d_out != model.dims.d_model:
        raise BadInput(
            f"SAE {sae.ref.slug} writes at {sae.out_site}, {sae.d_out} wide; output tokens need one that writes into "
            f"the residual stream of {model.dims.d_model}."
        )
    rows = sae.decoder[list(features)]
    unembed = W_U(model)
    # a norm's epsilon is made for values of a stream, not for rows of length 1
    rows = (rows * 100).to(unembed)
    norm = model.model.get_submodule(model.architecture.final_norm)
    logits: Tensor = ((norm(rows) - norm(-rows)) / 2).float() @ unembed.float().T
    return logits


def output_tokens(model: HookedModel, sae: SAEHandle, features: Sequence[int], *, n: int) -> dict[int, OutputTokens]:
    """The n tokens that each feature promotes most, and those that it suppresses most (ties: the lower token id).

    Raises:
        BadInput, SaeMetadataUnsupported: as `output_logits`.
    """
    found = {}
    for first in range(0, len(features), 64):
        part = features[first : first + 64]
        logits = output_logits(model, sae, part).cpu()
        # ids beyond the tokenizer's are rows without a token
        logits = logits[:, : len(model.tokenizer)]
        for feature, of_feature in zip(part, logits, strict=True):
            order = of_feature.sort(descending=True, stable=True).indices
            last = (-of_feature).sort(descending=True, stable=True).indices
            found[feature] = OutputTokens(_texts(model, order[:n]), _texts(model, last[:n]))
    return found


def _texts(model: HookedModel, token_ids: Tensor) -> tuple[str, ...]:
    return tuple(model.tokenizer.decode([one]) for one in token_ids.tolist())
