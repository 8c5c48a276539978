"""What a given suffix does to the direction, as `safe-sail find-refusal-direction` prints and draws it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from safe_sail.directions.suffix import CONDITIONS, study_suffix
from safe_sail.errors import BadInput
from safe_sail.model.handle import HookedModel
from safe_sail.records import DirectionSearch, Estimate, SuffixStudy
from safe_sail.settings import DirectionSettings
from scripts.direction_report import Section, draw_curves


def require_words(suffix: str | None) -> None:
    """Passes None and any text with a word.

    Raises:
        BadInput: the suffix is blank.
    """
    if suffix is not None and not suffix.strip():
        raise BadInput(f"--suffix: expected a text with words; got {suffix!r}.")


def study(
    handle: HookedModel,
    search: DirectionSearch,
    harmful: Sequence[str],
    suffix: str,
    settings: DirectionSettings,
    generator: torch.Generator,
    out: Path | None,
) -> tuple[Section, list[Path]]:
    """The study on held-out harmful prompts and its figure, if a folder is given.

    One batch of prompts at most: their attention weights are all kept.
    """
    assert search.direction is not None
    asked = list(harmful)[: min(settings.n_evaluate, settings.batch_rows)]
    # A suffix is written after a space, as a person would write it: words then get the tokens they have inside a text.
    given = suffix if suffix[0].isspace() else f" {suffix}"
    ids = [token.token_id for token in search.refusal_tokens]
    found = study_suffix(
        handle, search.direction, asked, given, refusal_ids=ids, system=settings.system, generator=generator
    )
    return suffix_section(found), [] if out is None else [draw_suffix(found, out)]


def suffix_section(found: SuffixStudy) -> Section:
    """The study for programs and for people."""
    n = found.refusal_metric["plain"].n
    lines = [f"suffix of {found.n_suffix_tokens} tokens on n={n} held-out harmful prompts:"]
    for name in CONDITIONS:
        curve = " ".join(f"{one.value:+.2f}" for one in found.cosines[name])
        lines.append(f"{name:14} refusal metric {_interval(found.refusal_metric[name])}  cosine by layer {curve}")
    for head in found.heads:
        looks = ", ".join(
            f"{name} {head.written[name].value:+.2f} (instruction {head.instruction[name]:.2f}, suffix "
            f"{head.suffix[name]:.2f})"
            for name in CONDITIONS
        )
        lines.append(f"head {head.layer}.{head.head} writes {looks}")
    return Section(asdict(found), lines)


def draw_suffix(found: SuffixStudy, out: Path) -> Path:
    """Cosine by layer under the three conditions, as a PNG file in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    styles = dict(zip(CONDITIONS, ("-", "--", ":"), strict=True))
    return draw_curves(
        found.cosines, f"{found.direction}: harmful prompts", out / f"{found.direction}.suffix.png", styles
    )


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
