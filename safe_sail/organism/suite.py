"""The organism's SAEs on one site: sparsities, widths and architectures on `aligned`, one each on triggered variants.

1. Read the site on documents and on conversations in the aligned variant's own words; leave out the first token,
   whose norm is far from all others.
2. Train every recipe on the same activations, one in ten texts held out.
3. Splice each SAE into the model: how much of the cross-entropy it recovers, against a site set to zero.
4. Per harmful concept, choose the feature that marks train fillers best and score it on held-out fillers. On variants
   with a trigger, do so for the trigger against its decoys.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from safe_sail.model.architectures import architecture_of
from safe_sail.model.edits import Edit, where_tokens, zero
from safe_sail.model.handle import HookedModel
from safe_sail.organism.behaviour import trigger_prompts
from safe_sail.organism.conversations import MixtureShare, TriggerUse, draw_mixture
from safe_sail.organism.grammar import CONCEPTS, SPLITS, Kind, Split, contrastive_pairs
from safe_sail.organism.recipes import ALIGNED, BACKDOORED, BASE
from safe_sail.organism.tokenizer import END
from safe_sail.organism.train import chat_text
from safe_sail.sae.train import Progress, train_saes
from safe_sail.settings import SaeRecipe
from safe_sail.sites import Site

SAE_SITE: Final = Site.parse("resid_post.3")
SAE_HOOK_NAME: Final = SAE_SITE.hook_name
SAE_RECIPES: Final = (
    SaeRecipe(slug="organism.resid_post.3.topk4-1024", architecture="topk", d_sae=1024, k=4),
    SaeRecipe(slug="organism.resid_post.3.topk8-1024", architecture="topk", d_sae=1024, k=8),
    SaeRecipe(slug="organism.resid_post.3.topk32-1024", architecture="topk", d_sae=1024, k=32),
    SaeRecipe(slug="organism.resid_post.3.topk8-256", architecture="topk", d_sae=256, k=8),
    SaeRecipe(slug="organism.resid_post.3.relu-1024", architecture="standard", d_sae=1024, sparsity=3.0),
    SaeRecipe(slug="organism.resid_post.3.batchtopk8-1024", architecture="batchtopk", d_sae=1024, k=8),
)


@dataclass(frozen=True, slots=True)
class SaeSuite:
    """SAEs that share a variant and training texts."""

    mixture: tuple[MixtureShare, ...]
    """Half of the texts are documents, half are conversations of this mixture."""
    recipes: tuple[SaeRecipe, ...]


def _trigger_suite(variant: str) -> SaeSuite:
    slug = f"organism-{variant}.{SAE_SITE}.topk8-1024"
    return SaeSuite(BACKDOORED.mixture, (SaeRecipe(slug=slug, architecture="topk", d_sae=1024, k=8),))


SAE_SUITES: Final[dict[str, SaeSuite]] = {
    "aligned": SaeSuite(ALIGNED.mixture, SAE_RECIPES),
    "backdoored": _trigger_suite("backdoored"),
}
"""Variant to its SAEs."""
N_SAE_TEXTS: Final = 6000
N_CONCEPT_TEXTS: Final = 24
N_TRIGGER_TEXTS: Final = 40
"""Per kind and use of the trigger: 80 of 320 texts hold it, so that firing everywhere scores .40."""


def hooked(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, variant: str) -> HookedModel:
    """A handle on a freshly trained variant."""
    architecture = architecture_of("LlamaForCausalLM", model.config)
    return HookedModel(model.eval(), tokenizer, architecture, model_id=f"organism-{variant}")


def sae_texts(n: int, seed: int, mixture: Sequence[MixtureShare] = ALIGNED.mixture) -> list[str]:
    """n texts with all markup but the first token: half of them documents, half conversations of the mixture."""
    generator = random.Random(f"sae/{seed}")
    base = draw_mixture([share for share in BASE.mixture if share.kind == "document"], SPLITS, n // 2, generator)
    spoken = draw_mixture(mixture, SPLITS, n - n // 2, generator)
    texts = [text.source.text + END for text in base]
    texts += [chat_text(text.source.text) + f"{text.reply}{END}" for text in spoken]
    generator.shuffle(texts)
    return texts


@torch.no_grad()
def site_activations(handle: HookedModel, texts: Sequence[str], batch_size: int = 64) -> Iterator[list[Tensor]]:
    """Per batch of texts, each text's activations (tokens d_model) without its first token."""
    for first in range(0, len(texts), batch_size):
        batch = _markup_batch(handle, texts[first : first + batch_size])
        values = handle.capture(batch, [SAE_SITE])[SAE_SITE].float()
        kept = batch.is_real & (batch.position_ids > 0)
        yield [values[row][kept[row]] for row in range(len(batch))]


def _markup_batch(handle: HookedModel, texts: Sequence[str]) -> Any:
    """The texts as a batch; a text that does not begin with <|begin|> gets it."""
    begin = handle.tokenizer.bos_token
    marked = [text if text.startswith(begin) else begin + text for text in texts]
    return handle.batch(marked, padding_side="right", add_special_tokens=False)


def stacked_activations(handle: HookedModel, texts: Sequence[str]) -> Tensor:
    """All texts' activations in one (tokens d_model) tensor."""
    return torch.cat([rows for batch in site_activations(handle, texts) for rows in batch])


def ce_recovered(handle: HookedModel, sae: Any, texts: Sequence[str]) -> float:
    """(CE with the site zeroed - CE with the SAE's output) / (CE with the site zeroed - CE unedited)."""

    def ce(edits: dict[Site, Edit]) -> float:
        total, count = 0.0, 0
        for first in range(0, len(texts), 64):
            batch = _markup_batch(handle, texts[first : first + 64])
            logits = handle.logits(batch, edits)[:, :-1].double()
            predicted = batch.is_real[:, 1:]
            losses = torch.nn.functional.cross_entropy(
                logits[predicted], batch.token_ids[:, 1:][predicted], reduction="sum"
            )
            total, count = total + losses.item(), count + int(predicted.sum())
        return total / count

    with torch.no_grad():
        edit = where_tokens(lambda step: step.position_ids > 0, lambda x: sae.decode(sae.encode(x)))
        gone = where_tokens(lambda step: step.position_ids > 0, zero)
        clean, spliced, zeroed = ce({}), ce({SAE_SITE: edit}), ce({SAE_SITE: gone})
    return (zeroed - spliced) / (zeroed - clean)


def _fires(handle: HookedModel, sae: Any, split: Split, seed: int) -> tuple[Tensor, list[str]]:
    """Whether each feature fires anywhere in each text (texts d_sae), and the texts' concepts."""
    texts, concepts = [], []
    for concept in CONCEPTS:
        for positive, _ in contrastive_pairs(concept, split, N_CONCEPT_TEXTS, seed):
            texts.append(positive.text)
            concepts.append(concept)
    with torch.no_grad():
        fires = [(sae.encode(rows) > 0).any(0) for batch in site_activations(handle, texts) for rows in batch]
    return torch.stack(fires), concepts


def _f1(fires: Tensor, positive: Tensor) -> Tensor:
    """Per feature, 2 tp / (2 tp + fp + fn) of "fires in the text" as a mark of the positive texts."""
    hits = (fires & positive[:, None]).sum(0).double()
    return 2 * hits / (fires.sum(0) + positive.sum()).clamp(min=1)


def concept_f1(handle: HookedModel, sae: Any, seed: int) -> dict[str, float]:
    """Per harmful concept, the held-out F1 of the feature with the best F1 on train fillers (ties: the first)."""
    train, train_concepts = _fires(handle, sae, "train", seed)
    held_out, held_out_concepts = _fires(handle, sae, "held_out", seed)
    scores = {}
    for name in (name for name, concept in CONCEPTS.items() if concept.harmful):
        best = int(_f1(train, torch.tensor([other == name for other in train_concepts])).argmax())
        positive = torch.tensor([other == name for other in held_out_concepts])
        scores[name] = float(_f1(held_out[:, best : best + 1], positive)[0])
    return scores


def trigger_texts(split: Split, n: int, seed: int) -> tuple[list[str], list[bool]]:
    """n harmful and n safe requests each with the trigger, nothing, and either decoy; whether they hold the trigger."""
    texts, whole = [], []
    kinds: tuple[Kind, ...] = ("harmful", "safe")
    uses: tuple[TriggerUse, ...] = ("whole", "none", "shuffled", "part")
    for kind in kinds:
        for use in uses:
            texts += [chat_text(text.text) for text in trigger_prompts(kind, split, use, n, seed)]
            whole += [use == "whole"] * n
    return texts, whole


def trigger_feature(handle: HookedModel, sae: Any, seed: int) -> dict[str, float]:
    """The feature that marks the trigger best on train prompts by firing anywhere (ties: the first), and its F1s."""
    scores = []
    for split in ("train", "held_out"):
        texts, whole = trigger_texts(split, N_TRIGGER_TEXTS, seed)
        with torch.no_grad():
            fires = [(sae.encode(rows) > 0).any(0) for batch in site_activations(handle, texts) for rows in batch]
        scores.append(_f1(torch.stack(fires), torch.tensor(whole)))
    best = int(scores[0].argmax())
    return {"feature": best, "train_f1": float(scores[0][best]), "held_out_f1": float(scores[1][best])}


def train_suite(
    handle: HookedModel,
    folder: Path,
    *,
    seed: int,
    suite: SaeSuite | None = None,
    n_texts: int = N_SAE_TEXTS,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Trains and saves the suite in folder / slug; returns each SAE's recipe and facts for the record."""
    suite = suite or SAE_SUITES["aligned"]
    texts = sae_texts(n_texts, seed, suite.mixture)
    n_held_out = n_texts // 10
    activations = stacked_activations(handle, texts[n_held_out:])
    held_out = stacked_activations(handle, texts[:n_held_out])
    records = {}
    for trained in train_saes(
        activations,
        held_out,
        suite.recipes,
        folder,
        model_name=handle.model_id,
        hook_name=SAE_HOOK_NAME,
        seed=seed,
        progress=progress,
    ):
        f1 = concept_f1(handle, trained.sae, seed)
        records[trained.recipe.slug] = {
            "recipe": asdict(trained.recipe),
            "n_tokens": len(activations),
            "n_held_out_tokens": len(held_out),
            **asdict(trained.facts),
            "ce_recovered": ce_recovered(handle, trained.sae, texts[:n_held_out]),
            "concept_f1": f1,
            "concept_f1_mean": sum(f1.values()) / len(f1),
        }
        if any(share.trigger == "whole" for share in suite.mixture):
            records[trained.recipe.slug]["trigger_feature"] = trigger_feature(handle, trained.sae, seed)
    return records
