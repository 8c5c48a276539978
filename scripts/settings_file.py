"""Settings files: options of commands kept in YAML, below what the command line says and above the defaults.

    model: google/gemma-2-2b          # for every command that has the option
    sae: [RELEASE/ID, ...]
    collect-contexts:                 # for this command alone, before the others
      window: 128

Files that come with the program are named without a folder: `--settings gemma-2-2b-gemma-scope`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import yaml

from safe_sail.errors import BadSettings

PRESETS: Final = Path(__file__).resolve().parents[1] / "safe_sail" / "presets"
_SHARED: Final = ("model", "model-id", "sae", "device", "dtype", "corpus", "text-field", "seed", "database")
"""Options that a file may give to all commands at once; one that a command lacks is none of its business."""


def preset_names() -> list[str]:
    """Names of the settings files that come with the program."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_settings(name: str, command: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Values of a command's parameters by a file; `options` says which parameter each option sets.

    Raises:
        BadSettings: there is no such file, it is no mapping, or it names an option that the command lacks.
    """
    path = PRESETS / f"{name}.yaml" if name in preset_names() else Path(name)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(
            f"--settings: `{name}` is neither a YAML file ({error.strerror or error}) nor one of "
            f"{', '.join(preset_names())}."
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadSettings(f"--settings: `{path}` is not YAML: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get(command, {}), dict):
        raise BadSettings(f"--settings: `{path}` must map options to values, and `{command}` to such a mapping.")
    values = {}
    for where, section in (("", found), (f"{command}: ", found.get(command, {}))):
        for key, value in section.items():
            option = str(key).replace("_", "-")
            if option in options:
                values[options[option]] = value
            elif where or (option not in _SHARED and not isinstance(value, dict)):
                raise BadSettings(
                    f"--settings: `{path}` names {where}{key}, which {command} does not have; its options are "
                    f"{', '.join(sorted(options))}."
                )
    return values


def _use(ctx: typer.Context, name: str | None) -> str | None:
    if name is not None:
        command = str(ctx.info_name)
        options = {
            word.removeprefix("--"): str(parameter.name)
            for parameter in ctx.command.params
            for word in parameter.opts
            if word.startswith("--") and word not in ("--settings", "--help")
        }
        ctx.default_map = {**(ctx.default_map or {}), **read_settings(name, command, options)}
    return name


SettingsFile = Annotated[
    str | None,
    typer.Option(
        "--settings",
        is_eager=True,
        callback=_use,
        help="YAML of these options, or the name of one that is shipped; options given here win.",
    ),
]
