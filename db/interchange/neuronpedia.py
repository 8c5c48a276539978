"""One SAE as Neuronpedia's batches: `features/`, `activations/`, `explanations/` of `batch-N.jsonl.gz`, beside four
small files `model.jsonl`, `release.jsonl`, `sourceset.jsonl`, `source.jsonl`.

1. `export_neuronpedia` writes one batch a page of the store. Their fields have no place for our scores, tags, token ids
   and the edges of histograms (the bars' middles are written); `dataSource` carries a context's source.
2. `import_neuronpedia` holds one batch of activations at a time. What the files lack is marked, not made up: a token id
   of -1, no histogram. Tokens seen are the product of the source's prompts and their length, or the caller says so.
"""

import gzip
import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from db import store
from db.interchange import reading
from db.interchange.files import finite, json_line, plain_text, read_lines, refuse, staged, whole
from db.packing import to_array
from safe_sail.errors import BadInput, ExportRefused, ImportUnreadable
from safe_sail.records import Context, Explanation, FeatureId, SaeRef, TopContexts

Row = dict[str, Any]

UNKNOWN_TOKEN_ID = -1
UNNAMED = "neuronpedia"
"""Explainer of an explanation that names no model: a person's, mostly."""

_BATCH = re.compile(r"batch-(\d+)\.jsonl(\.gz)?")

# --------------------------------------------------------------------------------------------- 1. export


class Exported(NamedTuple):
    """Lines written."""

    n_features: int
    n_activations: int
    n_explanations: int


def export_neuronpedia(session: Session, slug: str, target: Path, *, model_id: str | None = None) -> Exported:
    """Writes one SAE's features; `model_id` names its model where the database does not.

    Raises:
        NotFound: no SAE has this slug.
        ExportRefused: the target exists or cannot be written, or the SAE has no model or no layer.
    """
    sae = store.load_sae(session, slug)
    named = sae.model_id or model_id
    if named is None or sae.site.layer is None:
        raise ExportRefused(
            f"{slug} is at {sae.site} of model {named}; Neuronpedia needs a layer and a model: name it."
        )
    place = {"modelId": named, "layer": f"{sae.site.layer}-{slug}"}
    counts = [0, 0, 0]
    with staged(target, folder=True) as stage:
        _write_heads(session, stage, sae, named)
        kinds = ("features", "activations", "explanations")
        for kind in kinds:
            (stage / kind).mkdir()
        for number, (sae_key, page) in enumerate(reading.pages(session, slug)):
            seen = [kept.record for kept in reading.top_contexts(session, slug, sae_key, page)]
            said = [kept.record for kept in reading.explanations(session, slug, sae_key, page)]
            lines = (
                [place | _feature_line(one) for one in seen],
                [place | _activation_line(one.feature, context) for one in seen for context in one.contexts],
                [place | _explanation_line(one) for one in said],
            )
            for at, kind in enumerate(kinds):
                _write_batch(stage / kind / f"batch-{number}.jsonl.gz", lines[at])
                counts[at] += len(lines[at])
    return Exported(*counts)


def _write_heads(session: Session, stage: Path, sae: SaeRef, model_id: str) -> None:
    model: Row = {"id": model_id}
    if sae.model_id is not None:
        known = store.load_model(session, sae.model_id)
        model |= {"layers": known.n_layers, "neuronsPerLayer": known.d_mlp, "dimension": known.d_model}
    heads: dict[str, Row] = {
        "model": model,
        "release": {"name": sae.release or sae.slug},
        "sourceset": {"modelId": model_id, "name": sae.slug, "releaseName": sae.release or sae.slug},
        "source": {
            "id": f"{sae.site.layer}-{sae.slug}", "modelId": model_id, "setName": sae.slug,
            "saelensRelease": sae.release, "saelensSaeId": sae.sae_id,
        },
    }  # fmt: skip
    for name, head in heads.items():
        (stage / f"{name}.jsonl").write_bytes(json_line(head))


def _write_batch(path: Path, lines: list[Row]) -> None:
    if lines:
        with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
            for line in lines:
                file.write(json_line(line))


def _feature_line(one: TopContexts) -> Row:
    bars: Row = {"freq_hist_data_bar_heights": [], "freq_hist_data_bar_values": []}
    if one.histogram is not None:
        edges = one.histogram.edges
        middles = [low + (high - low) / 2 for low, high in pairwise(edges)]
        bars = {"freq_hist_data_bar_heights": list(one.histogram.counts), "freq_hist_data_bar_values": middles}
    return {"index": str(one.feature.index), "maxActApprox": one.max_activation, "frac_nonzero": one.density, **bars}


def _activation_line(feature: FeatureId, context: Context) -> Row:
    return {
        "id": _id(str(feature), context.source_id),
        "index": str(feature.index),
        "tokens": list(context.tokens),
        "values": list(context.activations),
        "maxValue": context.peak_activation,
        "maxValueTokenIndex": context.peak,
        "minValue": min(context.activations),
        "dataSource": context.source_id,
    }


def _explanation_line(one: Explanation) -> Row:
    return {
        "id": _id(str(one.feature), one.explainer, one.prompt_version),
        "index": str(one.feature.index),
        "description": one.text,
        "explanationModelName": one.explainer,
        "typeName": one.prompt_version,
    }


def _id(*parts: str) -> str:
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return "c" + hashlib.sha256(text).hexdigest()[:24]  # as long as theirs, and the same at every export


# --------------------------------------------------------------------------------------------- 2. import


class Imported(NamedTuple):
    """What an import brought."""

    n_features: int
    n_activations: int
    n_explanations: int
    n_repeated: int
    """Explanations left out: an earlier one has the same feature, model and type."""
    n_empty: int
    """Explanations left out: their text is empty."""


def import_neuronpedia(
    session: Session, folder: Path, *, sae: str, tokens_seen: int | None = None, run_id: str
) -> Imported:
    """Keeps the batches as features of an SAE that is kept before.

    Raises:
        ImportUnreadable: no batch is there, or a line is none of the format; the message names it.
        BadInput: how many tokens were seen is neither in `source.jsonl` nor given.
        NotFound: no SAE has this slug.
    """
    store.load_sae(session, sae)
    batches = {kind: _batches(folder / kind) for kind in ("features", "activations", "explanations")}
    if not any(batches.values()):
        refuse(str(folder), "features/, activations/ or explanations/ with batch-N.jsonl.gz", "none of them")
    if surplus := set(batches["activations"]) - set(batches["features"]):
        refuse(str(folder), "a batch of features for each of activations", f"activations alone: {sorted(surplus)}")
    reader = _Reader(sae)
    if batches["features"]:
        seen = tokens_seen or _tokens_seen(folder / "source.jsonl")
        store.save_top_contexts(session, reader.features(batches, seen), run_id=run_id)
    store.save_explanations(session, reader.explanations(batches["explanations"]), run_id=run_id)
    return Imported(*reader.counts)


def _batches(folder: Path) -> Mapping[int, Path]:
    found = {int(named[1]): path for path in folder.glob("batch-*") if (named := _BATCH.fullmatch(path.name))}
    return dict(sorted(found.items()))


def _tokens_seen(path: Path) -> int:
    heads = list(read_lines(path)) if path.exists() else []
    parts = [heads[0][1].get(name) for name in ("num_prompts", "num_tokens_in_prompt")] if heads else []
    if not parts or any(part is None for part in parts):
        raise BadInput(
            f"how many tokens the activations stand on is not in {path} (num_prompts, num_tokens_in_prompt); give it "
            f"with --tokens-seen."
        )
    prompts, length = (whole(str(path), part, "num_prompts, num_tokens_in_prompt", below=2**31) for part in parts)
    return prompts * length


class _Reader:
    """Records of one SAE's batches, all of one model and layer, counted."""

    def __init__(self, sae: str) -> None:
        self._sae = sae
        self._source: tuple[Any, Any] | None = None
        self._seen: set[tuple[int, str, str]] = set()
        self.counts = [0, 0, 0, 0, 0]

    def features(self, batches: Mapping[str, Mapping[int, Path]], tokens_seen: int) -> Iterator[TopContexts]:
        """What each feature fires on."""
        done: set[int] = set()
        for number, path in batches["features"].items():
            contexts = self._contexts(batches["activations"].get(number))
            for place, row in read_lines(path):
                feature = self._feature(place, row)
                if feature.index in done:
                    refuse(place, "every feature once", feature.index)
                done.add(feature.index)
                mine = _distinct(contexts.pop(feature.index, []))
                self.counts[0] += 1
                self.counts[1] += len(mine)
                try:
                    yield TopContexts(
                        feature=feature,
                        contexts=tuple(mine),
                        n_tokens_seen=tokens_seen,
                        density=finite(place, row.get("frac_nonzero"), "frac_nonzero"),
                        max_activation=finite(place, row.get("maxActApprox"), "maxActApprox"),
                        histogram=None,
                    )
                except ImportUnreadable:
                    raise
                except BadInput as error:
                    raise ImportUnreadable(f"{place}: {error}") from error
            if contexts:
                refuse(str(path), "a line for every feature of the activations", f"none for {sorted(contexts)[:8]}")

    def _contexts(self, path: Path | None) -> dict[int, list[tuple[str, Context]]]:
        found: dict[int, list[tuple[str, Context]]] = {}
        for place, row in read_lines(path) if path is not None else ():
            feature = self._feature(place, row)
            own = row.get("id")
            found.setdefault(feature.index, []).append((str(own or place), _context(place, row)))
        return found

    def explanations(self, batches: Mapping[int, Path]) -> Iterator[Explanation]:
        """Each explanation that has a text, the first of a key."""
        for path in batches.values():
            for place, row in read_lines(path):
                feature = self._feature(place, row)
                text = plain_text(place, row.get("description"), "description", may_be_empty=True)
                explainer = plain_text(place, row.get("explanationModelName") or UNNAMED, "explanationModelName")
                version = plain_text(place, row.get("typeName") or "unknown", "typeName")
                key = (feature.index, explainer, version)
                if not text.strip() or key in self._seen:
                    self.counts[3 if text.strip() else 4] += 1
                    continue
                self._seen.add(key)
                self.counts[2] += 1
                yield Explanation(feature=feature, text=text, explainer=explainer, prompt_version=version)

    def _feature(self, place: str, row: Row) -> FeatureId:
        source = (row.get("modelId"), row.get("layer"))
        self._source = self._source or source
        if source != self._source:
            refuse(place, f"features of one source, {self._source}", source)
        index = row.get("index")
        if not isinstance(index, str) or not re.fullmatch(r"0|[1-9][0-9]{0,8}", index):
            refuse(place, "`index` to be a text of digits", index)
        return FeatureId(sae=self._sae, index=int(index))


def _context(place: str, row: Row) -> Context:
    tokens, values = row.get("tokens"), row.get("values")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not tokens:
        refuse(place, "`tokens` to be a list of texts", tokens)
    if not isinstance(values, list) or len(values) != len(tokens):
        refuse(place, f"`values` to be a list of {len(tokens)} numbers", values)
    try:
        activations = to_array([finite(place, value, "values") for value in values], "<f4").tolist()
    except ImportUnreadable:
        raise
    except BadInput as error:
        raise ImportUnreadable(f"{place}: {error}") from error
    source = row.get("dataSource")
    return Context(
        tokens=tuple(tokens),
        token_ids=(UNKNOWN_TOKEN_ID,) * len(tokens),
        activations=tuple(activations),
        peak=activations.index(max(activations)),
        source_id=source if isinstance(source, str) else "",
    )


def _distinct(named: list[tuple[str, Context]]) -> list[Context]:
    """Contexts by descending peak; named by their own id where the sources do not tell them apart."""
    contexts = [context for _, context in named]
    sources = {context.source_id for context in contexts}
    if len(sources) < len(contexts) or "" in sources:
        contexts = [
            Context(
                tokens=one.tokens, token_ids=one.token_ids, activations=one.activations, peak=one.peak, source_id=own
            )
            for own, one in named
        ]
    return sorted(contexts, key=lambda one: (-one.peak_activation, one.source_id))
