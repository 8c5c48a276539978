"""RunInfo of the run that is starting: settings, seed, versions, commit, device."""

import dataclasses
import platform
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safe_sail.records import RunInfo

_PACKAGES = ("safe-sail", "torch", "transformers", "sae-lens", "numpy", "sqlalchemy")


def start_run(command: str, *, settings: object, seed: int, device: str) -> RunInfo:
    """RunInfo of a run that starts now; `settings` is a settings dataclass or a mapping of JSON values."""
    now = datetime.now(UTC)
    return RunInfo(
        run_id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        command=command,
        seed=seed,
        settings=_as_mapping(settings),
        git_commit=_git_commit(),
        versions=_versions(),
        device=device,
        started=now,
    )


def finish_run(run: RunInfo) -> RunInfo:
    """The same run, finished now."""
    return replace(run, finished=datetime.now(UTC))


def _as_mapping(settings: object) -> Mapping[str, object]:
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return dataclasses.asdict(settings)
    assert isinstance(settings, Mapping)
    return dict(settings)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"  # a fact worth keeping: the server runs without torch
    return found


def _git_commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
