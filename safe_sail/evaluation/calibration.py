"""Completions that were judged elsewhere, and how well a judge of ours agrees with them.

1. Rows of `prompt`, `response`, `category` come from JSON, as a list or under `completions`, the form of the public
   runs of refusal-direction experiments; labels are those keys of a row that hold true/false or 0/1.
2. The judge reads each response.
3. Agreement, Cohen's kappa and the table of counts, with intervals over rows. Degenerate replies are counted apart,
   since no two-way label has a place for them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_sail.errors import CorpusUnreadable, EmptyConcept
from safe_sail.evaluation.refusal import Label, Rate, judge_reply, wilson_rate


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedCompletion:
    """One completion with the verdicts that came with it."""

    prompt: str
    response: str
    category: str
    """Empty where the row has none."""
    verdicts: Mapping[str, bool]
    """By the name that the file gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Agreement of our judge with one column of verdicts."""

    verdict: str
    agreement: Rate
    """Over rows that our judge does not call degenerate."""
    kappa: float | None
    """Cohen's kappa; None where both give every row one label, so that chance agrees fully."""
    counts: Mapping[tuple[Label, bool], int]
    """(our label, whether the verdict says compliance) to rows."""
    n_degenerate: int
    """Rows that our judge calls broken text, whatever the verdict."""


def load_judged(path: Path) -> list[JudgedCompletion]:
    """Judged completions of a JSON file.

    Raises:
        CorpusUnreadable: the file is missing or malformed, or a row lacks prompt or response.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusUnreadable(f"{path}: expected a JSON file of judged completions ({error}).") from error
    rows = content.get("completions") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise CorpusUnreadable(f"{path}: expected a list of rows, or one under `completions`; found none.")
    return [_row(path, index, row) for index, row in enumerate(rows)]


def _row(path: Path, index: int, row: Any) -> JudgedCompletion:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("prompt", "response")):
        raise CorpusUnreadable(f"{path}, row {index}: expected texts `prompt` and `response`; got {str(row)[:80]}.")
    verdicts = {
        str(name): bool(value)
        for name, value in row.items()
        if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1))
    }
    return JudgedCompletion(
        prompt=row["prompt"], response=row["response"], category=str(row.get("category") or ""), verdicts=verdicts
    )


def calibrate(
    rows: Sequence[JudgedCompletion],
    verdict: str,
    *,
    means_compliance: bool = True,
    judge: Callable[[str], Label] = judge_reply,
) -> Calibration:
    """Agreement of a judge with one column; `means_compliance` says what true stands for in it.

    Raises:
        EmptyConcept: no row carries this verdict, or the judge calls every one degenerate.
    """
    judged = [row for row in rows if verdict in row.verdicts]
    if not judged:
        known = sorted({name for row in rows for name in row.verdicts})
        raise EmptyConcept(f"no row has a verdict `{verdict}`; the rows have {', '.join(known) or 'none'}.")
    pairs: list[tuple[Label, bool]] = [
        (judge(row.response), row.verdicts[verdict] is means_compliance) for row in judged
    ]
    counts = Counter(pairs)
    told = [(label == "compliance", complies) for label, complies in pairs if label != "degenerate"]
    if not told:
        raise EmptyConcept(f"verdict `{verdict}`: the judge calls all {len(pairs)} responses degenerate.")
    n, same = len(told), sum(ours == theirs for ours, theirs in told)
    ours_share, theirs_share = sum(ours for ours, _ in told) / n, sum(theirs for _, theirs in told) / n
    chance = ours_share * theirs_share + (1 - ours_share) * (1 - theirs_share)
    return Calibration(
        verdict=verdict,
        agreement=wilson_rate(same, n),
        kappa=None if chance == 1 else (same / n - chance) / (1 - chance),
        counts=dict(counts),
        n_degenerate=len(pairs) - n,
    )
