"""What a feature does to a model: ablated or boosted, beside random features that are as active.

1. Plain pass: distribution of the first reply token of every prompt, and each feature's mean activation times the norm
   of its decoder row, which is how much it writes.
2. Controls of a feature: drawn from those that write most nearly as much on the same prompts.
3. Ablation takes a(x) d away at every token but the first, with a from the stream as it is there; a boost adds
   strength * d, and to a control's row the same length. Padding is never changed.
4. Per prompt: the refusal metric's change, and KL(plain || changed).

The first token is left alone: its norm is far from all others', and SAEs are mostly trained without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from safe_sail.errors import BadInput, BadSettings
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.utility import kl_divergence, refusal_metric
from safe_sail.model.edits import Edit, Step, where_tokens
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import Estimate, FeatureId, Intervention, InterventionScore
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import InterventionSettings
from safe_sail.sites import SiteKind

_POOL: Final = 3
"""Controls are drawn from this many times as many features, those that write most nearly as much."""


class _Plain(NamedTuple):
    """The model without intervention, all prompts of all sets one after another."""

    batches: list[TokenBatch]
    logits: Float[Tensor, "prompt d_vocab"]
    writes: Float64[Tensor, " d_sae"]
    """Mean over tokens of activation times norm of the decoder row."""
    fires: Tensor
    """Whether each feature is active on each prompt, [prompt, d_sae]."""


def intervene(
    handle: HookedModel,
    sae: SAEHandle,
    features: Mapping[int, float],
    prompts: Mapping[str, Sequence[str]],
    *,
    refusal_ids: Sequence[int],
    settings: InterventionSettings,
    generator: torch.Generator,
) -> Iterator[InterventionScore]:
    """Scores of each feature, by intervention and set of prompts; `features` gives each one's boost, in SAE units.

    A feature without a positive boost is ablated only.

    Raises:
        BadInput: the SAE cannot be written with: it has no decoder, writes elsewhere than it reads, or rescales.
        BadSettings: there are too few other features for controls, or a set has no prompt.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    require_writable(sae)
    texts = [text for of_set in prompts.values() for text in of_set]
    if not all(prompts.values()) or not texts:
        raise BadSettings("an intervention is measured on prompts; a set has none.")
    if sae.d_sae - len(features) < settings.n_controls:
        raise BadSettings(
            f"{sae.d_sae - len(features)} other features of {sae.ref.slug} are too few for {settings.n_controls} "
            f"controls; set n_controls."
        )
    plain = _plain(handle, sae, texts, settings)
    weights = [resample_weights(len(of_set), settings.n_bootstrap, generator) for of_set in prompts.values()]
    norms = sae.decoder.float().norm(dim=1)
    for index, boost in features.items():
        controls = _controls(plain.writes, index, features, settings.n_controls, generator)
        kinds = [(Intervention.ABLATE, 0.0)] + ([(Intervention.BOOST, boost)] if boost > 0 else [])
        for kind, strength in kinds:
            length = strength * float(norms[index])
            found = [_effects(handle, sae, plain, one, length, refusal_ids) for one in (index, *controls)]
            start = 0
            for (name, of_set), resamples in zip(prompts.items(), weights, strict=True):
                part = slice(start, start + len(of_set))
                start += len(of_set)
                yield InterventionScore(
                    feature=FeatureId(sae=sae.ref.slug, index=index),
                    intervention=kind,
                    prompts=name,
                    strength=strength,
                    active_share=float(plain.fires[part, index].double().mean()),
                    refusal_change=mean_estimate(found[0].refusal[part], resamples),
                    refusal_control=_over_controls([float(one.refusal[part].mean()) for one in found[1:]]),
                    kl=mean_estimate(found[0].kl[part], resamples),
                    kl_control=_over_controls([float(one.kl[part].mean()) for one in found[1:]]),
                )


def require_writable(sae: SAEHandle) -> None:
    """Nothing, where a feature can be changed in the stream by its decoder row.

    Raises:
        BadInput: the SAE has no decoder, writes elsewhere than it reads, or rescales.
    """
    problem = ""
    if not sae.has_decoder:
        problem = "it has no decoder"
    elif sae.is_transcoder:
        problem = f"it reads `{sae.site}` and writes `{sae.out_site}`"
    elif sae.decode_needs_input or sae.form.input_norm != "none":
        problem = "it rescales what it reads"
    elif sae.site.kind is SiteKind.HEAD_OUT:
        problem = "it reads heads"
    if problem:
        raise BadInput(f"{sae.ref.slug}: a feature is changed where it is read, by its decoder row; {problem}.")


# 1. plain


@torch.no_grad()
def _plain(handle: HookedModel, sae: SAEHandle, texts: Sequence[str], settings: InterventionSettings) -> _Plain:
    batches, logits, fires = [], [], []
    total, n_tokens = torch.zeros(sae.d_sae, dtype=torch.float64), 0
    for first in range(0, len(texts), settings.batch_size):
        batch = handle.chat_batch(texts[first : first + settings.batch_size])
        run = handle.run(batch, [sae.site], logits="last")
        assert run.logits is not None
        changed = (batch.is_real & (batch.position_ids > 0)).to(sae.device)
        acts = sae.encode(run.captures[sae.site].to(sae.device)).float() * changed[..., None]
        total += acts.double().sum(dim=(0, 1)).cpu()
        n_tokens += int(changed.sum())
        fires.append((acts > 0).any(dim=1).cpu())
        logits.append(run.logits[:, -1].float().cpu())
        batches.append(batch)
    writes = total / max(1, n_tokens) * sae.decoder.double().norm(dim=1).cpu()
    return _Plain(batches, torch.cat(logits), writes, torch.cat(fires))


# 2. controls


def _controls(
    writes: Float64[Tensor, " d_sae"], index: int, chosen: Mapping[int, float], n: int, generator: torch.Generator
) -> list[int]:
    """n features drawn from those that write most nearly as much, by ratio (ties: the lower index)."""
    others = torch.tensor([other for other in range(len(writes)) if other not in chosen])
    least = float(writes[writes > 0].min()) if bool((writes > 0).any()) else 1.0
    # what never writes stands a factor of ten below what writes least
    logs = writes.where(writes > 0, least / 10).log()
    nearest = others[(logs[others] - logs[index]).abs().sort(stable=True).indices[: _POOL * n]]
    found: list[int] = nearest[torch.randperm(len(nearest), generator=generator)[:n]].tolist()
    return found


# 3. and 4. effects


class _Effects(NamedTuple):
    refusal: Float64[Tensor, " prompt"]
    kl: Float64[Tensor, " prompt"]


@torch.no_grad()
def _effects(
    handle: HookedModel, sae: SAEHandle, plain: _Plain, index: int, length: float, refusal_ids: Sequence[int]
) -> _Effects:
    """Effects of ablating the feature, or where a length is given of adding so much along its decoder row."""
    edits = {sae.site: feature_edit(sae, index, length)}
    logits = torch.cat([handle.logits(batch, edits, positions="last")[:, -1].float().cpu() for batch in plain.batches])
    change = refusal_metric(logits, refusal_ids) - refusal_metric(plain.logits, refusal_ids)
    return _Effects(change.double(), kl_divergence(plain.logits, logits))


def feature_edit(sae: SAEHandle, index: int, length: float = 0.0) -> Edit:
    """Edit that takes the feature away at every token but the first, or adds `length` along its decoder row."""
    row = sae.decoder_row(index).float()
    chosen: Int[Tensor, " one"] = torch.tensor([index], device=sae.device)

    def ablate(x: Tensor) -> Tensor:
        acts = sae.encode(x.to(sae.device), chosen).float()
        rest: Tensor = x.float() - (acts * row).to(x.device)
        return rest.to(x.dtype)

    def boost(x: Tensor) -> Tensor:
        moved: Tensor = x.float() + length * (row / row.norm()).to(x.device)
        return moved.to(x.dtype)

    def not_first(step: Step) -> Tensor:
        return step.position_ids > 0

    return where_tokens(not_first, boost if length else ablate)


def _over_controls(values: Sequence[float]) -> Estimate:
    reached = torch.tensor(values, dtype=torch.float64)
    low, high = reached.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean = float(reached.mean())
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(values))
