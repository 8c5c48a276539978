"""What a prompt and its answer activate, token by token, in every SAE; or what two prompts activate differently.

safe-sail trace-prompt "how do i fold a napkin?"
safe-sail trace-prompt "how do i fold a napkin?" --against "how do i fold a napkin? answer in one word."
safe-sail trace-prompt TEXT --model MODEL --sae FOLDER --scale quantile_999 --json
"""

import json
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from api.offers import ORGANISM_MODELS
from db import store
from db.engine import reading
from db.store.whole import to_json
from safe_sail.records import FeatureId, PromptComparison, PromptTrace, TracedText
from safe_sail.settings import CompareSettings, TraceSettings
from safe_sail.settings.live import ComparePromptsJob, ScaleName, TracePromptJob
from scripts.job_runs import at_command_line
from scripts.live import answer
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.subjects import Dtype, ModelId, ModelName, SaeNames

Notes = dict[FeatureId, str]


def trace(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    against: Annotated[str | None, typer.Option(help="Another prompt: which features differ most.")] = None,
    model: ModelName = None,
    model_id: ModelId = None,
    sae: SaeNames = None,
    system: Annotated[str | None, typer.Option(help="System prompt; none is sent unless given.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The text as it is, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the answer at most.")] = 40,
    n_top: Annotated[int, typer.Option(min=1, help="Features of each token.")] = 3,
    scale: Annotated[ScaleName, typer.Option(help="What activations are divided by.")] = "maximum",
    by_token: Annotated[
        bool, typer.Option("--by-token", help="Compare equal runs of tokens, not means over content tokens.")
    ] = False,
    database: DatabaseUrl = DEFAULT_DATABASE,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Print each token's features, or the features that differ most between two prompts."""
    told: TracePromptJob | ComparePromptsJob
    named: dict[str, Any] = {
        "model": model or ORGANISM_MODELS[0], "saes": None if sae is None else tuple(sae), "system": system,
        "plain": plain, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    if against is None:
        told = TracePromptJob(prompt=prompt, settings=TraceSettings(n_top=n_top, scale=scale), **named)
    else:
        how = CompareSettings(alignment="token" if by_token else "mean", scale=scale, seed=seed)
        told = ComparePromptsJob(first=prompt, second=against, settings=how, **named)
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        engine = context.database()
        found = answer(told, context)
        assert isinstance(found, PromptTrace | PromptComparison)
        notes = _notes(engine, found)
    if as_json:
        print(json.dumps(json.loads(to_json(found)), indent=1))
    elif isinstance(found, PromptTrace):
        _print_trace(found, notes)
    else:
        _print_comparison(found, notes)


def _notes(engine: Engine, found: PromptTrace | PromptComparison) -> Notes:
    """What is said of the features, by the explanation that judges score highest."""
    if isinstance(found, PromptTrace):
        features = [FeatureId(sae=one.sae, index=f.index) for one in found.layers for f in one.strongest]
    else:
        features = [FeatureId(sae=one.sae, index=f.index) for one in found.layers for f in one.features]
    with reading(engine) as session:
        known = store.load_feature_listings(session, features)
    return {feature: row.explanation for feature, row in known.items() if row.explanation}


def _print_reply(text: TracedText) -> None:
    if text.reply is not None:
        print(f"{text.reply.label}: {text.reply.text.strip()}")


def _print_trace(found: PromptTrace, notes: Notes) -> None:
    _print_reply(found.text)
    for layer in found.layers:
        unit = f"times their {layer.scale.replace('_', ' ')}" if layer.is_normalised else "in SAE units"
        print(f"\n{layer.sae} at {layer.site}: features of each token, {unit}; {layer.n_scaled} have a stored scale")
        for place, (token, row) in enumerate(zip(found.text.tokens, layer.top, strict=True)):
            who = "" if place < found.text.n_prompt else " (answer)"
            said = "; ".join(
                f"#{one.index} {one.activation if one.normalised is None else one.normalised:.2f}" for one in row
            )
            print(f"  {token!r:<18}{who} {said}")
        for strongest in layer.strongest:
            note = notes.get(FeatureId(sae=layer.sae, index=strongest.index), "not explained")
            token = found.text.tokens[strongest.peak]
            print(f"    #{strongest.index} up to {strongest.activations[strongest.peak]:.2f} on {token!r}: {note}")


def _print_comparison(found: PromptComparison, notes: Notes) -> None:
    for text in (found.first, found.second):
        _print_reply(text)
    for layer in found.layers:
        print(
            f"\n{layer.sae} at {layer.site}: {found.n_compared[0]} and {found.n_compared[1]} tokens, "
            f"{found.alignment}; * beyond what 95 % of {layer.n_random} random exchanges of tokens give"
        )
        for one in layer.features:
            note = notes.get(FeatureId(sae=layer.sae, index=one.index), "not explained")
            mark = "*" if one.is_beyond_chance else " "
            print(f"  {mark} #{one.index:<6} {one.first:8.3f} {one.second:8.3f} {one.difference:+8.3f}  {note}")
