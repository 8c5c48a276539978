"""The published Safe-SAIL database: one JSON object, `"<layer>_<latent>"` to explanation, score and tags.

1. `read_safe_sail` reads and checks the whole file: two megabytes for 4,700 features, refused beyond half a gigabyte.
2. `import_safe_sail` keeps it as one SAE a layer: explanations of explainer `safe-sail-release`, a `PublishedScore` and
   `FeatureTags` of that source. The masked explanation `***` stays that text, which no search finds; null stays absent.
3. `export_safe_sail` writes the same object, feature by feature, for these or for our own explanations.

Source: arXiv 2509.18127 and its repository, MIT. Neither width nor site is in the file: `PUBLISHED` has them.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.orm import Session

from db.interchange.files import finite, plain_text, read_whole, refuse, staged
from db.interchange.reading import FeatureText, feature_texts
from db.interchange.saes import GivenSae, require_sae
from db.store import load_sae, save_explanations, save_feature_tags, save_published_scores
from safe_sail.errors import ExportRefused
from safe_sail.records import Explanation, FeatureId, FeatureTags, PublishedScore
from safe_sail.sites import Site, SiteKind

RELEASE = "safe-sail-release"
"""Explainer of the published explanations, and source of their scores and tags."""
PROMPT_VERSION = "1"
METHOD = "correlation_score"
MASK = "***"
"""What stands in the release for an explanation that was withheld."""
MAX_BYTES = 512 * 2**20
PUBLISHED = GivenSae(d_in=2048, width=20480, architecture="safe-sail-topk")
"""Of the release's SAEs, read off its checkpoints: ten times the 2,048 of Qwen2.5-3B-Instruct's MLP outputs."""

_KEY = re.compile(r"(0|[1-9][0-9]{0,3})_(0|[1-9][0-9]{0,8})")
_FIELDS = {"explanation", "correlation_score", "tag_list"}


class ReleasedFeature(NamedTuple):
    """One entry of the file."""

    layer: int
    latent: int
    explanation: str | None
    """`***` where it is masked."""
    score: float
    tags: tuple[str, ...]


class Imported(NamedTuple):
    """What an import brought."""

    n_features: int
    n_tagged: int
    n_masked: int
    n_without_explanation: int
    saes: tuple[str, ...]


# --------------------------------------------------------------------------------------------- 1. reading


def read_safe_sail(path: Path) -> list[ReleasedFeature]:
    """Entries of the file, by layer and latent.

    Raises:
        ImportUnreadable: the file is missing, damaged or of another format; the message names the key.
    """
    whole = read_whole(path, MAX_BYTES)
    if not isinstance(whole, dict) or not whole:
        refuse(str(path), 'a JSON object of features, as {"17_42": {...}}', whole)
    return sorted((_released(f"{path}, key {key[:40]!r}", key, entry) for key, entry in whole.items()), key=_order)


def _order(one: ReleasedFeature) -> tuple[int, int]:
    return one.layer, one.latent


def _released(place: str, key: str, entry: object) -> ReleasedFeature:
    named = _KEY.fullmatch(key)
    if named is None:
        refuse(place, "`<layer>_<latent>`, as `17_42`", key)
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        refuse(place, f"the fields {', '.join(sorted(_FIELDS))}", list(entry) if isinstance(entry, dict) else entry)
    said, tags = entry["explanation"], entry["tag_list"]
    if not isinstance(tags, list):
        refuse(place, "`tag_list` to be a list", tags)
    names = tuple(plain_text(place, tag, "tag_list") for tag in tags)
    if len(set(names)) < len(names):
        refuse(place, "every tag once", tags)
    return ReleasedFeature(
        layer=int(named[1]),
        latent=int(named[2]),
        explanation=None if said is None else plain_text(place, said, "explanation"),
        score=finite(place, entry["correlation_score"], "correlation_score"),
        tags=names,
    )


# --------------------------------------------------------------------------------------------- 2. import


def import_safe_sail(
    session: Session,
    released: Sequence[ReleasedFeature],
    *,
    prefix: str,
    kind: SiteKind = SiteKind.MLP_OUT,
    facts: GivenSae = PUBLISHED,
    sae_id: str,
    run_id: str,
) -> Imported:
    """Keeps the entries under SAEs `<prefix>.<layer>`, which are made where the database lacks them.

    Raises:
        ImportUnreadable: a latent lies beyond the width.
        BadInput: an SAE of that name is known with other facts.
        NotFound: the run or the model is not kept.
    """
    saes = {
        layer: require_sae(
            session, f"{prefix}.{layer}", replace(facts, site=Site(kind, layer)), sae_id=f"{sae_id}#{layer}",
            run_id=run_id,
        )
        for layer in sorted({one.layer for one in released})
    }  # fmt: skip
    for one in released:
        if one.latent >= saes[one.layer].width:
            width = saes[one.layer].width
            refuse(f"key `{one.layer}_{one.latent}`", f"a latent of 0 to {width - 1}, by the width given", one.latent)
    named = [(FeatureId(sae=saes[one.layer].slug, index=one.latent), one) for one in released]
    save_published_scores(
        session,
        (PublishedScore(feature=name, method=METHOD, value=one.score, source=RELEASE) for name, one in named),
        run_id=run_id,
    )
    save_feature_tags(
        session, (FeatureTags(feature=name, tags=one.tags, source=RELEASE) for name, one in named), run_id=run_id
    )
    save_explanations(
        session,
        (
            Explanation(feature=name, text=one.explanation, explainer=RELEASE, prompt_version=PROMPT_VERSION)
            for name, one in named
            if one.explanation is not None
        ),
        run_id=run_id,
    )
    return Imported(
        n_features=len(released),
        n_tagged=sum(bool(one.tags) for one in released),
        n_masked=sum(one.explanation == MASK for one in released),
        n_without_explanation=sum(one.explanation is None for one in released),
        saes=tuple(sae.slug for sae in saes.values()),
    )


# --------------------------------------------------------------------------------------------- 3. export


class Exported(NamedTuple):
    """What an export wrote."""

    n_features: int
    n_left_out: int
    """Explained features without a score, which the format cannot hold."""


def export_safe_sail(
    session: Session, saes: Sequence[str], target: Path, *, explainer: str = RELEASE, prompt_version: str | None = None
) -> Exported:
    """Writes one explainer's features: published scores where it has them, else the judges' token or segment score.

    Raises:
        NotFound: no SAE has such a slug.
        ExportRefused: the target exists, two SAEs share a layer or one has none, or there is nothing to write.
    """
    layers: dict[int, str] = {}
    for slug in saes:
        layer = load_sae(session, slug).site.layer
        if layer is None or layer in layers:
            shared = f"as {layers[layer]} is" if layer is not None else "without a layer"
            raise ExportRefused(f"{slug} is at layer {layer}, {shared}; this format knows features by layer alone.")
        layers[layer] = slug
    n_written = n_left_out = 0
    with staged(target, folder=False) as stage:
        with stage.open("w", encoding="utf-8") as file:
            file.write("{")
            for layer, one in _in_order(session, layers, explainer, prompt_version):
                score = one.score(METHOD)
                if score is None:
                    n_left_out += 1
                    continue
                entry = {"explanation": one.text, "correlation_score": score, "tag_list": list(one.tags)}
                file.write(f'{", " if n_written else ""}"{layer}_{one.index}": {json.dumps(entry, allow_nan=False)}')
                n_written += 1
            file.write("}")
        if not n_written:
            raise ExportRefused(
                f"{', '.join(saes) or 'no SAE'}: nothing explained and scored by `{explainer}`; name another explainer."
            )
    return Exported(n_written, n_left_out)


def _in_order(
    session: Session, layers: dict[int, str], explainer: str, prompt_version: str | None
) -> Iterator[tuple[int, FeatureText]]:
    for layer, slug in sorted(layers.items()):
        for one in feature_texts(session, slug, explainer=explainer, prompt_version=prompt_version):
            yield layer, one
