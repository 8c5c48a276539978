"""One prompt answered plainly and with a feature or a direction added or taken away.

safe-sail steer-prompt "how do i fold a napkin?" --direction organism-aligned.refusal
safe-sail steer-prompt "how do i fold a napkin?" --sae FOLDER --feature 17 --coefficient 2
"""

import json
from typing import Annotated, Literal

import typer

from api.offers import ORGANISM_MODELS
from db.store.whole import to_json
from safe_sail.records import Steering
from safe_sail.settings.live import SteerPromptJob
from scripts.job_runs import at_command_line
from scripts.live import answer
from scripts.options import DEFAULT_DATABASE, AsJson, DatabaseUrl, Device
from scripts.subjects import Dtype, ModelId, ModelName


def steer(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    sae: Annotated[str | None, typer.Option(help="SAE of the feature.")] = None,
    feature: Annotated[int | None, typer.Option(min=0, help="Feature of the SAE.")] = None,
    direction: Annotated[str | None, typer.Option(help="Direction in the database, instead of a feature.")] = None,
    kind: Annotated[Literal["add", "ablate"], typer.Option(help="add or ablate.")] = "add",
    coefficient: Annotated[float, typer.Option(help="Times the feature's stored maximum, or the direction.")] = 1.0,
    unit: Annotated[Literal["maximum", "activation"], typer.Option(help="Of a feature's coefficient.")] = "maximum",
    model: ModelName = None,
    model_id: ModelId = None,
    system: Annotated[str | None, typer.Option(help="System prompt; none is sent unless given.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer at most.")] = 60,
    database: DatabaseUrl = DEFAULT_DATABASE,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Print both answers, each with its label."""
    told = SteerPromptJob(
        prompt=prompt, model=model or ORGANISM_MODELS[0], sae=sae, feature=feature, direction=direction, kind=kind,
        coefficient=coefficient, unit=unit, system=system, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    with at_command_line(database, device=device, dtype=dtype, model_id=model_id) as context:
        context.database()
        found = answer(told, context)
    assert isinstance(found, Steering)
    if as_json:
        print(json.dumps(json.loads(to_json(found)), indent=1))
        return
    how = f"{found.coefficient:g} times, length {found.length:.3g}" if found.kind == "add" else "ablated"
    print(f"{found.target} at {found.site}, {how}; KL of the first token {found.kl:.3f} nats")
    print(f"plain    {found.plain.label}: {found.plain.text.strip()}")
    print(f"steered  {found.steered.label}: {found.steered.text.strip()}")
