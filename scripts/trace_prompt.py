"""What a prompt and its answer activate, token by token, in every SAE; or what two prompts activate differently.

safe-sail trace-prompt "how do i fold a napkin?"
safe-sail trace-prompt "how do i fold a napkin?" --against "how do i fold a napkin? answer in one word."
safe-sail trace-prompt TEXT --model MODEL --sae FOLDER --scale quantile_999 --json
"""

import json
from typing import Annotated

import typer

from db import store
from db.engine import make_engine, reading
from db.migrate import upgrade
from db.store.whole import to_json
from safe_sail.errors import BadSettings
from safe_sail.links.compare import compare_prompts
from safe_sail.links.trace import Asked, trace_prompt
from safe_sail.records import FeatureId, PromptComparison, PromptTrace, TracedText
from safe_sail.settings import CompareSettings, TraceSettings
from safe_sail.settings.live import ComparePromptsJob, ScaleName, TracePromptJob
from scripts.live import scales_of
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device, Seed
from scripts.subjects import Dtype, ModelId, ModelName, SaeNames, load_handle, load_saes

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
    if against is None:
        told = TracePromptJob(prompt=prompt, system=system, plain=plain, max_new_tokens=max_new_tokens)
    else:
        pair = ComparePromptsJob(first=prompt, second=against, system=system, plain=plain, max_new_tokens=0)
        told = TracePromptJob(prompt=pair.first, system=system, plain=plain, max_new_tokens=max_new_tokens)
    if plain and system is not None:
        raise BadSettings("--system is a turn of a chat; leave it out with --plain.")
    engine = make_engine(database)
    upgrade(engine)
    handle = load_handle(model, model_id, device=device, dtype=dtype)
    saes = load_saes(sae, handle, device=device)
    scales = scales_of(engine, saes, scale)
    asked = Asked(told.max_new_tokens, system, plain)
    found: PromptTrace | PromptComparison
    if against is None:
        found = trace_prompt(handle, saes, prompt, asked, TraceSettings(n_top=n_top, scale=scale), scales)
        features = [FeatureId(sae=one.sae, index=f.index) for one in found.layers for row in one.top for f in row]
    else:
        settings = CompareSettings(alignment="token" if by_token else "mean", scale=scale, seed=seed)
        found = compare_prompts(handle, saes, (prompt, against), asked, settings, scales)
        features = [FeatureId(sae=one.sae, index=f.index) for one in found.layers for f in one.features]
    with reading(engine) as session:
        known = store.load_feature_listings(session, list(dict.fromkeys(features)))
    engine.dispose()
    if as_json:
        print(json.dumps(json.loads(to_json(found)), indent=1))
        return
    notes = {feature: row.explanation for feature, row in known.items() if row.explanation}
    if isinstance(found, PromptTrace):
        _print_trace(found, notes)
    else:
        _print_comparison(found, notes)


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
