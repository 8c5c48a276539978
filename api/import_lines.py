"""Lines of JSON, as `/v1/saes/{sae}/export` writes them, into the database: all of them or nothing.

1. `read_line` makes records of a line. It must say exactly what the export would write of these records, so that no
   field is passed over and none is made up.
2. `import_lines` keeps the records in one transaction, under a run whose id is made of what was sent: the same request
   again finds its run, and changes nothing.
3. `reference_lines` writes what features refer to, for an export that any database can take.
"""

import hashlib
import json
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.schemas import FeatureDetail, ImportReport, ImportTally, encodable
from db import store
from db.engine import writing
from db.interchange.bundles import BundleKeeper, References
from db.interchange.files import parse_json, refuse
from db.store import Explained, FeatureBundle, Kept
from safe_sail import __version__
from safe_sail.errors import BadInput, ImportUnreadable, NotFound
from safe_sail.records import Concept, ModelRef, RunInfo, SaeRef, TopContexts
from safe_sail.sites import Site

_REFERENCES: dict[str, type] = {"run": RunInfo, "model": ModelRef, "concept": Concept}
_SIZES = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab", "d_in", "width")

Line = RunInfo | ModelRef | Concept | FeatureBundle

# --------------------------------------------------------------------------------------------- 1. one line


def read_line(data: bytes, place: str) -> Line:
    """What the line says.

    Raises:
        ImportUnreadable: no JSON, not the form of an export, or no record can hold it.
    """
    value = parse_json(data, place)
    if not isinstance(value, dict) or not ("feature" in value or (len(value) == 1 and set(value) <= set(_REFERENCES))):
        refuse(place, "a feature as an export writes it, or a `run`, `model` or `concept`", value)
    try:
        if "feature" in value:
            return _bundle(_checked(FeatureDetail, value, place), place)
        ((name, inner),) = value.items()
        found: Line = _checked(_REFERENCES[name], inner, place)
        _require_sizes(found, place)
        return found
    except ImportUnreadable:
        raise
    except BadInput as error:
        raise ImportUnreadable(f"{place}: {error}") from error


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _checked(kind: type, value: Any, place: str) -> Any:
    try:
        found = _adapter(kind).validate_json(_adapter(object).dump_json(value), strict=True)
        again = _adapter(kind).dump_python(found, mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        refuse(place, f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}", first["input"])
    except ValueError as error:  # half a character, which no line can say
        raise ImportUnreadable(f"{place}: expected UTF-8; {error}.") from error
    if again != value:
        refuse(place, f"exactly the fields of an export; {_difference(again, value)}", value)
    return found


def _difference(expected: Any, got: Any, path: str = "the line") -> str:
    """The first place where two JSON values differ."""
    if isinstance(expected, dict) and isinstance(got, dict):
        if odd := sorted(expected.keys() ^ got.keys()):
            return f"{path} {'has no' if odd[0] in expected else 'has an unknown'} `{odd[0]}`"
        name = next(name for name in expected if expected[name] != got[name])
        return _difference(expected[name], got[name], f"`{name}`" if path == "the line" else f"{path}.`{name}`")
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        at = next(i for i, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1])
        return _difference(expected[at], got[at], f"{path}[{at}]")
    return f"{path} reads as {str(expected)[:60]}"


def _require_sizes(record: Any, place: str) -> None:
    for name in _SIZES:
        if getattr(record, name, 0) >= 2**31:
            refuse(place, f"`{name}` below 2^31", getattr(record, name))


def _bundle(detail: FeatureDetail, place: str) -> FeatureBundle:
    view = detail.sae
    names = ("slug", "release", "sae_id", "model_id", "d_in", "width", "architecture")
    sae = SaeRef(**{name: getattr(view, name) for name in names}, site=Site.parse(view.site))
    _require_sizes(sae, place)
    kept: list[Any] = [*detail.concept_scores, *(said.explanation for said in detail.explanations)]
    kept += [score for said in detail.explanations for score in said.scores]
    of_others = [str(one.record.feature) for one in kept if one.record.feature != detail.feature]
    if sae.slug != detail.feature.sae or of_others:
        refuse(place, f"records of {detail.feature} alone", [sae.slug, *of_others])
    _require_once(detail, place)
    explanations = []
    for said in detail.explanations:
        by = (said.explanation.record.explainer, said.explanation.record.prompt_version)
        for one in said.scores:
            if (one.record.explainer, one.record.prompt_version) != by:
                refuse(place, f"scores of the explanation by {by}", one.record.explainer)
        scores = tuple(Kept(one.record, one.run_id) for one in said.scores)
        explanations.append(Explained(Kept(said.explanation.record, said.explanation.run_id), scores))
    return FeatureBundle(
        feature=detail.feature,
        sae=sae,
        top_contexts=_top_contexts(detail, place),
        concept_scores=tuple(Kept(one.record, one.run_id) for one in detail.concept_scores),
        explanations=tuple(explanations),
    )


def _require_once(detail: FeatureDetail, place: str) -> None:
    names: list[tuple[str, ...]] = [("concept", one.record.concept) for one in detail.concept_scores]
    for said in detail.explanations:
        by = (said.explanation.record.explainer, said.explanation.record.prompt_version)
        names += [by, *((*by, str(one.record.method)) for one in said.scores)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        refuse(place, "each concept score, explanation and score once", twice)


def _top_contexts(detail: FeatureDetail, place: str) -> Kept[TopContexts] | None:
    if detail.contexts_run_id is None:
        if (
            detail.contexts
            or (detail.n_tokens_seen, detail.density, detail.max_activation, detail.histogram) != (None,) * 4
        ):
            refuse(place, "no contexts and numbers without `contexts_run_id`", detail.n_tokens_seen)
        return None
    if detail.n_tokens_seen is None or detail.density is None or detail.max_activation is None:
        refuse(place, "`n_tokens_seen`, `density` and `max_activation` of collected contexts", detail.n_tokens_seen)
    for context in detail.contexts:
        values = np.array(context.activations)
        with np.errstate(over="ignore"):
            kept = values.astype(np.float32)
        if not np.array_equal(kept, values):
            refuse(place, "activations that are float32 values", context.activations)
    found = TopContexts(
        feature=detail.feature,
        contexts=tuple(detail.contexts),
        n_tokens_seen=detail.n_tokens_seen,
        density=detail.density,
        max_activation=detail.max_activation,
        histogram=detail.histogram,
    )
    return Kept(found, detail.contexts_run_id)


# --------------------------------------------------------------------------------------------- 2. all lines


def import_lines(engine: Engine, body: bytes, source: str | None) -> ImportReport:
    """Keeps what the lines say; blank lines are passed over.

    Raises:
        ImportUnreadable: there is no line, or one cannot be read or kept; it is named, and nothing was kept.
    """
    lines = [
        (f"line {number}", read_line(line, f"line {number}"))
        for number, line in enumerate(body.split(b"\n"), 1)
        if line.strip()
    ]
    if not lines:
        raise ImportUnreadable("expected a line for each feature, as an export writes them; got an empty body.")
    sha256 = hashlib.sha256(body).hexdigest()
    name = hashlib.sha256(f"{source}\0{sha256}".encode()).hexdigest()
    run = RunInfo(
        run_id=f"import-{name[:32]}", command="import", seed=0, device="none", started=datetime.now(UTC),
        settings={"format": "ndjson", "source": source, "sha256": sha256, "n_lines": len(lines)},
        git_commit=None, versions={"python": platform.python_version(), "safe-sail": __version__},
    )  # fmt: skip
    with writing(engine) as session:
        if not _is_kept(session, run.run_id):
            store.save_run(session, replace(run, finished=run.started))
        keeper = BundleKeeper(session, run.run_id, encodable)
        seen: dict[str, str] = {}
        for place, record in lines:
            if isinstance(record, FeatureBundle) and (before := seen.setdefault(str(record.feature), place)) != place:
                refuse(place, "each feature once", f"{record.feature}, as in {before}")
            try:
                _keep(keeper, record)
            except (BadInput, NotFound) as error:
                raise ImportUnreadable(f"{place}: {error}") from error
    counts = {kind: ImportTally(**asdict(tally)) for kind, tally in keeper.counts.items()}
    return ImportReport(run_id=run.run_id, sha256=sha256, n_lines=len(lines), **counts)


def _is_kept(session: Session, run_id: str) -> bool:
    try:
        store.load_run(session, run_id)
    except NotFound:
        return False
    return True


def _keep(keeper: BundleKeeper, record: Line) -> None:
    if isinstance(record, RunInfo):
        keeper.keep_run(record)
    elif isinstance(record, ModelRef):
        keeper.keep_model(record)
    elif isinstance(record, Concept):
        keeper.keep_concept(record)
    else:
        keeper.keep_sae(record.sae)
        keeper.keep_feature(record)


# --------------------------------------------------------------------------------------------- 3. lines of references


def reference_lines(found: References) -> list[bytes]:
    """Lines that stand before features where a database lacks what these refer to: runs, models, concepts."""
    lines = []
    for name, records in zip(_REFERENCES, found, strict=True):
        for record in records:
            value = {name: _adapter(_REFERENCES[name]).dump_python(record, mode="json")}
            lines.append(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return lines
