"""What a run will need, said on stderr before anything large is loaded."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from safe_sail.features.forecast import Forecast, reached_speed
from safe_sail.model.load import check_device
from safe_sail.model.size import ModelSize, model_size
from safe_sail.organism.load import organism_sae_paths
from safe_sail.sae.size import SaeSize, sae_size
from scripts.subjects import model_path, sae_source

NeedsOnly = Annotated[bool, typer.Option("--dry-run", help="Say what the run would need, and end.")]
_UNITS = ("B", "kB", "MB", "GB", "TB")


def sizes_of(model: str | None, sae: Sequence[str] | None) -> tuple[ModelSize, list[SaeSize]]:
    """Sizes of the model and the SAEs that the options name, or of the organism's, from their headers alone."""
    names: Sequence[str | Path] = list(organism_sae_paths().values()) if sae is None else list(sae)
    found = []
    for name in names:
        source, site, _ = sae_source(name)
        found.append(sae_size(source, site=site))
    return model_size(model_path(model)), found


def say_forecast(forecast: Forecast, *, device: str, dtype: torch.dtype, is_here: bool = True) -> str:
    """The forecast as text, which is printed on stderr too; the speed is measured where the device `is_here`.

    Raises:
        DeviceUnavailable: this machine lacks the device.
    """
    text = (
        f"needs about {shown(forecast.on_device)} on {device}: {shown(forecast.weights)} of weights, "
        f"{shown(forecast.saes)} of SAEs, at most {shown(forecast.activations)} of activations; and "
        f"{shown(forecast.buffers)} of memory for what it keeps\n"
    )
    if is_here:
        check_device(device)
        speed = reached_speed(device, dtype)
        text += (
            f"takes at least {forecast.operations * 1e6 / speed:.3g} s for a million tokens: {forecast.operations:.3g} "
            f"operations a token at the {speed:.3g} a second that a product reaches here"
        )
    else:
        text += f"does {forecast.operations:.3g} operations a token"
    print(text, file=sys.stderr)
    return text


def shown(n_bytes: float) -> str:
    """Bytes as people read them, three digits: `4.71 GB`."""
    for unit in _UNITS[:-1]:
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} {_UNITS[-1]}"
