"""The phrase judge against verdicts made elsewhere, as `safe-sail find-refusal-direction --judged` prints them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_sail.errors import BadInput
from safe_sail.evaluation.calibration import Calibration, calibrate, load_judged
from safe_sail.evaluation.llm_judge import LABELS
from scripts.direction_report import Section


def calibration_of(path: Path | None, refusal_verdicts: Sequence[str]) -> Section | None:
    """A table for each column of verdicts in the file; None without a file.

    `refusal_verdicts` are the columns whose true says that the reply refuses; in all others it says that it complies.

    Raises:
        CorpusUnreadable: the file is missing or malformed.
        BadInput: no row has a verdict, or a column is named that no row has.
        EmptyConcept: the phrase judge calls every response degenerate.
    """
    if path is None:
        if refusal_verdicts:
            raise BadInput("--refusal-verdict names a column of judged completions: give --judged FILE too.")
        return None
    rows = load_judged(path)
    columns = sorted({name for row in rows for name in row.verdicts})
    if not columns:
        raise BadInput(f"{path}: no row has a verdict; expected a key with true, false, 0 or 1 beside the texts.")
    if unknown := sorted(set(refusal_verdicts) - set(columns)):
        raise BadInput(f"--refusal-verdict: no row has {', '.join(unknown)}; the rows have {', '.join(columns)}.")
    found = [calibrate(rows, name, means_compliance=name not in refusal_verdicts) for name in columns]
    lines = [f"phrase judge against {path.name}, {len(rows)} rows:"]
    for one in found:
        lines += _lines(one, says="refusal" if one.verdict in refusal_verdicts else "compliance")
    return Section([_plain(one) for one in found], lines)


def _lines(found: Calibration, *, says: str) -> list[str]:
    kappa = "-" if found.kappa is None else f"{found.kappa:.3f}"
    same = found.agreement
    return [
        f"{found.verdict} (true says {says}): same {same.share:.3f} [{same.low:.3f}, {same.high:.3f}] of n={same.n}, "
        f"kappa {kappa}, {found.n_degenerate} degenerate left out",
        f"  {'phrase judge':14} {'theirs refusal':>16} {'theirs compliance':>18}",
        *(
            f"  {label:14} {found.counts.get((label, False), 0):16} {found.counts.get((label, True), 0):18}"
            for label in LABELS
        ),
    ]


def _plain(found: Calibration) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "agreement": found.agreement._asdict(),
        "kappa": found.kappa,
        "n_degenerate": found.n_degenerate,
        "counts": [
            {"phrase_judge": label, "verdict": "compliance" if complies else "refusal", "n": n}
            for (label, complies), n in sorted(found.counts.items())
        ],
    }
