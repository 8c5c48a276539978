"""Which features of a concept are linked: those that tell its texts from others best, on texts that judge nothing."""

from collections.abc import Sequence

import torch

from safe_sail.errors import BadInput
from safe_sail.features.score import ConceptSplits, text_maxima
from safe_sail.features.separability import firing_rates, mean_gap
from safe_sail.links.connect import LinkConcept
from safe_sail.model.handle import HookedModel
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings


def concepts_to_link(
    handle: HookedModel,
    sae: SAEHandle,
    splits: Sequence[ConceptSplits],
    settings: LinkSettings,
    *,
    as_chat: bool = True,
    features: Sequence[int] | None = None,
) -> list[LinkConcept]:
    """Each concept with its features and at most as many pairs as the settings say.

    Features are those with the largest rate gap over the choosing texts (ties: the larger mean gap, then the lower
    index), among the given ones if any are given.

    Raises:
        BadInput: a feature is outside the SAE.
        EmptyConcept: a class of a concept has no text.
    """
    if features is not None and any(not 0 <= one < sae.d_sae for one in features):
        raise BadInput(f"features of SAE {sae.ref.slug} are 0 to {sae.d_sae - 1}; got {sorted(features)}.")
    found = []
    for choose, judge in splits:
        is_positive = torch.tensor(choose.is_positive)
        values = text_maxima(handle, [sae], choose.texts, batch_size=settings.batch_rows, as_chat=as_chat)[sae.ref.slug]
        gap, height = firing_rates(values, is_positive).gap.tolist(), mean_gap(values, is_positive).tolist()
        among = range(sae.d_sae) if features is None else sorted(set(features))
        order = sorted(among, key=lambda one: (-gap[one], -height[one], one))
        found.append(
            LinkConcept(
                judge.concept,
                tuple(order[: settings.n_features]),
                choose.pairs[: settings.n_choose],
                judge.pairs[: settings.n_judge],
            )
        )
    return found
