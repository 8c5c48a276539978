"""What every record is made of: an estimate with its interval, and the run that found it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from safe_sail.records.checks import require, require_slug


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number estimated from n observations, with its interval."""

    value: float
    """Point estimate; finite."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of independent observations (texts, pairs, contexts) behind it."""
    level: float = 0.95
    """Coverage that the interval aims at."""

    def __post_init__(self) -> None:
        require(
            all(math.isfinite(x) for x in (self.value, self.low, self.high)),
            f"an estimate is finite; got {self.value} [{self.low}, {self.high}]. Leave an undefined score out.",
        )
        require(self.low <= self.high, f"interval [{self.low}, {self.high}] runs backwards.")
        require(self.n > 0, f"an estimate needs at least one observation; got n={self.n}.")
        require(0 < self.level < 1, f"interval level lies between 0 and 1; got {self.level}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """One run of a command: enough to run it again."""

    run_id: str
    command: str
    seed: int
    settings: Mapping[str, object]
    """The command's settings, whole, as JSON values."""
    git_commit: str | None
    """None outside a git checkout; ends in `+changes` where files differed."""
    versions: Mapping[str, str]
    """Python and the packages that decide numbers."""
    device: str
    started: datetime
    finished: datetime | None = None
    """None while running, or where the run was killed."""

    def __post_init__(self) -> None:
        require_slug("run id", self.run_id)
        for name, moment in (("started", self.started), ("finished", self.finished)):
            require(moment is None or moment.tzinfo is not None, f"{name} of run {self.run_id} needs a time zone.")
