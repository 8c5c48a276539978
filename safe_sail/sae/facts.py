"""How well SAEs reconstruct what their sites hold, measured in the model they belong to.

1. One plain pass per batch gives the value at every SAE's site and the next-token cross-entropy.
2. Per SAE, a second pass with its reconstruction in place of its output site's value; per output site, one with zeros.
3. Sums over content tokens are kept in float64, so memory does not grow with the number of batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import BadText, SaeMetadataUnsupported
from safe_sail.model.edits import Edit, replace, zero
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, content_mask
from safe_sail.records import SaeFacts
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site


@dataclass(slots=True)
class _Sums:
    """What has been added up for one SAE."""

    residual: float = 0.0
    total_squares: float = 0.0
    total: Tensor | None = None
    active: float = 0.0
    fired: Tensor | None = None
    n_tokens: int = 0
    loss_spliced: float = 0.0
    loss_plain: float = 0.0
    loss_zero: float = 0.0
    n_predicted: int = 0


def measure_facts(model: HookedModel, saes: Sequence[SAEHandle], batches: Iterable[TokenBatch]) -> list[SaeFacts]:
    """Facts of each SAE over the content tokens of the batches, all SAEs in the same passes; in the order given.

    Explained variance is 1 - sum of squared residuals / sum of squared deviations from the mean, over all coordinates.
    Cross-entropy counts the predictions of content tokens, in nats; the ablated model has its output site at zero.

    Raises:
        BadText: the batches hold no content token, or none that can be predicted.
        SaeMetadataUnsupported: an SAE has no decoder.
    """
    for sae in saes:
        if not sae.has_decoder:
            raise SaeMetadataUnsupported(
                f"SAE {sae.ref.slug} has no decoder, so there is no reconstruction to measure."
            )
    sums = [_Sums() for _ in saes]
    with torch.no_grad():
        for batch in batches:
            _add_batch(model, saes, sums, batch)
    return [_facts(sae, found) for sae, found in zip(saes, sums, strict=True)]


def _add_batch(model: HookedModel, saes: Sequence[SAEHandle], sums: Sequence[_Sums], batch: TokenBatch) -> None:
    sites = sorted({site for sae in saes for site in (sae.site, sae.out_site)})
    plain = model.run(batch, sites)
    assert plain.logits is not None
    content = content_mask(batch, model.tokenizer)
    loss_plain, n_predicted = _loss(plain.logits, batch, content)
    loss_zero: dict[Site, float] = {}
    for sae, found in zip(saes, sums, strict=True):
        x = plain.captures[sae.site]
        rebuilt = sae.reconstruct(x).to(x.dtype)
        _add_reconstruction(found, plain.captures[sae.out_site][content], rebuilt[content])
        _add_activity(found, sae.encode(x[content]))
        if sae.out_site not in loss_zero:
            loss_zero[sae.out_site] = _edited_loss(model, batch, content, {sae.out_site: zero})
        found.loss_spliced += _edited_loss(model, batch, content, {sae.out_site: replace(rebuilt)})
        found.loss_plain += loss_plain
        found.loss_zero += loss_zero[sae.out_site]
        found.n_predicted += n_predicted


def _add_reconstruction(found: _Sums, target: Tensor, rebuilt: Tensor) -> None:
    target, rebuilt = target.flatten(1).double(), rebuilt.flatten(1).double()
    found.residual += float((target - rebuilt).square().sum())
    found.total_squares += float(target.square().sum())
    summed = target.sum(dim=0)
    found.total = summed if found.total is None else found.total + summed
    found.n_tokens += target.shape[0]


def _add_activity(found: _Sums, activations: Float[Tensor, "token d_sae"]) -> None:
    on = activations > 0
    found.active += float(on.sum())
    fired = on.any(dim=0)
    found.fired = fired if found.fired is None else found.fired | fired


def _edited_loss(
    model: HookedModel, batch: TokenBatch, content: Bool[Tensor, "batch seq"], edits: Mapping[Site, Edit]
) -> float:
    return _loss(model.logits(batch, edits), batch, content)[0]


def _loss(
    logits: Float[Tensor, "batch seq d_vocab"], batch: TokenBatch, content: Bool[Tensor, "batch seq"]
) -> tuple[float, int]:
    """Summed cross-entropy in nats of the content tokens that have a real token before them, and their number."""
    predicted = content[:, 1:] & batch.is_real[:, :-1]
    rows = logits[:, :-1][predicted.to(logits.device)].float()
    targets = batch.token_ids[:, 1:][predicted].to(logits.device)
    loss = torch.nn.functional.cross_entropy(rows, targets, reduction="none")
    return float(loss.double().sum()), int(predicted.sum())


def _facts(sae: SAEHandle, found: _Sums) -> SaeFacts:
    if found.total is None or found.fired is None or found.n_tokens == 0 or found.n_predicted == 0:
        raise BadText(f"SAE {sae.ref.slug}: the batches hold no content token to measure on; give some text.")
    variance = found.total_squares - float(found.total.square().sum()) / found.n_tokens
    return SaeFacts(
        sae=sae.ref.slug,
        l0=found.active / found.n_tokens,
        explained_variance=1 - found.residual / variance,
        ce_recovered=(found.loss_zero - found.loss_spliced) / (found.loss_zero - found.loss_plain),
        dead_share=1 - float(found.fired.double().mean()),
        n_tokens=found.n_tokens,
    )
