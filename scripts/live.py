"""What somebody waits for: one prompt traced, compared, steered or judged by a guard, as jobs and as commands alike.

The result of such a job is its record as JSON under `record`; explanations of features are added where it is shown,
since they may be written later.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from db import store
from db.engine import reading
from db.store.whole import to_json
from safe_sail.errors import BadInput, GuardUnfit
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.links.compare import compare_prompts
from safe_sail.links.steer import direction_steer, feature_steer, steer_prompt
from safe_sail.links.trace import Asked, trace_prompt
from safe_sail.model.handle import HookedModel
from safe_sail.neurons.guard import load_guard
from safe_sail.records import FeatureScale, GuardVerdict, PromptComparison, PromptTrace, Reply, Steering, SteerKind
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings.live import ComparePromptsJob, GuardPromptJob, SteerPromptJob, TracePromptJob
from scripts.job_runs import JobContext


def run_job(settings: object, context: JobContext) -> dict[str, Any]:
    """The record that a live request asked for, as JSON."""
    return {"record": json.loads(to_json(answer(settings, context)))}


def answer(settings: object, context: JobContext) -> object:
    """The record that a live request asked for, on behalf of a job or of a command line."""
    return _ANSWERS[type(settings)](settings, context)


def _scales(engine: Engine, saes: Sequence[SAEHandle], scale: str) -> dict[str, dict[int, float]]:
    """By SAE and feature, what activations are divided by; empty for an SAE of which nothing is kept."""
    with reading(engine) as session:
        return {sae.ref.slug: store.load_scales(session, sae.ref.slug, FeatureScale(scale)) for sae in saes}


def _steered(engine: Engine, handle: HookedModel, sae: SAEHandle | None, settings: SteerPromptJob) -> Steering:
    """Both answers, with a feature of a loaded SAE or a direction of the database.

    Raises:
        BadInput: the feature has no stored maximum that the coefficient could be measured in, or cannot be steered.
        NotFound: no direction has this slug.
    """
    kind = SteerKind(settings.kind)
    asked = Asked(settings.max_new_tokens, settings.system)
    if sae is None:
        assert settings.direction is not None
        with reading(engine) as session:
            direction = store.load_direction(session, settings.direction).record
        steer = direction_steer(handle, direction, kind, coefficient=settings.coefficient)
        return steer_prompt(handle, settings.prompt, asked, steer)
    assert settings.feature is not None
    unit = 1.0
    if kind is SteerKind.ADD and settings.unit == "maximum":
        known = _scales(engine, [sae], "maximum")[sae.ref.slug]
        if settings.feature not in known:
            raise BadInput(
                f"{sae.ref.slug}/{settings.feature} has no stored maximum to measure a coefficient in; collect its "
                f"contexts, or give the coefficient in SAE units: unit `activation`."
            )
        unit = known[settings.feature]
    steer = feature_steer(sae, settings.feature, kind, coefficient=settings.coefficient, unit=unit)
    return steer_prompt(handle, settings.prompt, asked, steer)


def _trace(settings: TracePromptJob, context: JobContext) -> PromptTrace:
    handle = context.handle(settings.model)
    saes = context.sae_handles(handle, settings.saes)
    asked = Asked(settings.max_new_tokens, settings.system, settings.plain)
    scales = _scales(context.engine, saes, settings.settings.scale)
    return trace_prompt(handle, saes, settings.prompt, asked, settings.settings, scales)


def _compare(settings: ComparePromptsJob, context: JobContext) -> PromptComparison:
    handle = context.handle(settings.model)
    saes = context.sae_handles(handle, settings.saes)
    asked = Asked(settings.max_new_tokens, settings.system, settings.plain)
    scales = _scales(context.engine, saes, settings.settings.scale)
    prompts = (settings.first, settings.second)
    return compare_prompts(handle, saes, prompts, asked, settings.settings, scales)


def _steer(settings: SteerPromptJob, context: JobContext) -> Steering:
    handle = context.handle(settings.model)
    saes = [] if settings.sae is None else context.sae_handles(handle, [settings.sae])
    return _steered(context.engine, handle, saes[0] if saes else None, settings)


def _guard(settings: GuardPromptJob, context: JobContext) -> GuardVerdict:
    folder = Path(context.offers.guard(settings.guard))
    facts = _facts(folder)
    handle = context.handle(settings.model or str(facts.get("model_id", "")).removeprefix("organism-"))
    named = settings.sae or facts.get("sae")
    saes = context.sae_handles(handle, [str(named)]) if named else []
    guard = load_guard(folder, sae=saes[0] if saes else None)
    (said,) = guard.answer(handle, [settings.prompt], max_new_tokens=settings.max_new_tokens)
    return GuardVerdict(
        model_id=handle.model_id,
        prompt=settings.prompt,
        features=guard.features,
        probability=said.probability,
        threshold=guard.threshold,
        refused=said.refused,
        reply=Reply(text=said.reply, token_ids=(), label=judge_reply(said.reply)),
    )


def _facts(folder: Path) -> Mapping[str, Any]:
    """What the guard's own file says it needs; `load_guard` checks the rest."""
    try:
        found = json.loads((folder / "guard.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuardUnfit(f"the guard's folder has no readable guard.json ({error}); train the guard again.") from error
    if not isinstance(found, dict):
        raise GuardUnfit("guard.json holds no object; train the guard again.")
    return found


_ANSWERS: dict[type, Callable[[Any, JobContext], object]] = {
    TracePromptJob: _trace,
    ComparePromptsJob: _compare,
    SteerPromptJob: _steer,
    GuardPromptJob: _guard,
}
