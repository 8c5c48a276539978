"""What explaining and judging by a language model cost, feature by feature, and how each ended.

An entry belongs to one run. A feature that failed in one run and was explained in a later one has two, so that what
was paid stays the sum of the entries.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.errors import BadRecord
from safe_sail.records.features import JudgeMethod
from safe_sail.records.subjects import FeatureId

LEDGER_TEXT_LIMIT = 4000
"""Characters of a message or of a raw answer that an entry keeps; four times the longest answer that was asked for."""


class Stage(StrEnum):
    """What was asked."""

    EXPLAIN = "explain"
    JUDGE = "judge"


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """What one run spent on one feature at one stage, and how that ended."""

    feature: FeatureId
    stage: Stage
    explainer: str
    """Of the explanation that was asked for, or that was judged; with the prompt version its key."""
    prompt_version: str
    method: JudgeMethod | None
    """How it was judged; None at the stage of explaining."""
    model: str
    """Who was asked; `lexical` where nobody was."""
    reason: str | None
    """Why there is no explanation or no score; None where there is one."""
    message: str
    """The reason in a sentence; empty where there is none."""
    raw: str | None
    """What came instead of a usable answer, cut to `LEDGER_TEXT_LIMIT` characters; None where nothing came."""
    attempts: int
    """HTTP requests sent; 0 where the answer was in the cache or nobody was asked."""
    prompt_tokens: int
    """As the endpoint reported them."""
    completion_tokens: int
    """As the endpoint reported them."""
    assumed_tokens: int
    """Upper bound for attempts that may be billed but reported nothing."""
    cost: float | None
    """US dollars at the list price for all of these tokens; None where the price is unknown."""

    def __post_init__(self) -> None:
        if not (self.explainer and self.prompt_version and self.model):
            raise BadRecord(f"{self.feature}: a ledger entry names explainer, version and model.")
        if (self.method is None) != (self.stage is Stage.EXPLAIN):
            raise BadRecord(f"{self.feature}: judging has a method and explaining has none; got {self.method}.")
        for name in ("attempts", "prompt_tokens", "completion_tokens", "assumed_tokens"):
            if getattr(self, name) < 0:
                raise BadRecord(f"{self.feature}: {name} counts from 0; got {getattr(self, name)}.")
        if self.cost is not None and not (math.isfinite(self.cost) and self.cost >= 0):
            raise BadRecord(f"{self.feature}: a cost is at least 0, or None where unknown; got {self.cost}.")
        for text in (self.message, self.raw or ""):
            if len(text) > LEDGER_TEXT_LIMIT:
                raise BadRecord(
                    f"{self.feature}: {len(text)} characters of text; a ledger entry keeps {LEDGER_TEXT_LIMIT}."
                )
