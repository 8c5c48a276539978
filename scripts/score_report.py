"""A ranking of SAEs as a table for people or JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from safe_sail.features.score import SaeConceptResult
from safe_sail.records import Estimate, SaeFacts, SaeRanking, SaeSpecificity
from scripts.options import DEFAULT_DATABASE

PER_THOUSAND = 1000
"""I_CDF is printed in features per thousand."""


def print_scores(
    ranking: Sequence[SaeRanking],
    results: Sequence[SaeConceptResult],
    facts: Sequence[SaeFacts],
    plots: Sequence[Path],
    *,
    database: str,
    as_json: bool,
) -> None:
    """Print the ranking, which places are ties, each concept's best SAE, and what to type next."""
    if as_json:
        found = {
            "ranking": [asdict(one) for one in ranking],
            "specificity": [asdict(one.specificity) for one in results if one.specificity is not None],
            "scores": [asdict(one.score) for one in results],
            "facts": [asdict(one) for one in facts],
            "plots": [str(path) for path in plots],
        }
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False, width=max(120, Console().width))
    console.print(_ranking_table(ranking, results, facts))
    n_concepts = ranking[0].rate_gap.n
    unpaired = sum(one.specificity is None for one in results) // len(ranking)
    console.print(
        "specific: of 1,000 features, how many tell a concept's pairs apart beyond their null, mean over "
        f"{n_concepts - unpaired} concepts\n  with pairs; it orders the table.  I_CDF: with the null left in.  "
        "EV: explained variance.\n"
        "rate gap: how much oftener a concept's best feature fires on texts about it than on others, mean over "
        f"{n_concepts} concepts.\n"
        "features: a concept's specific ones (F_i more than one half above its null, q < 0.05).\n"
        "tied: places whose paired difference may be 0.\n"
        "The orders may differ: many features that know a little, or one that knows. docs/methods/scoring_saes.md\n"
    )
    console.print(_concept_table(ranking, results))
    for path in plots:
        console.print(f"drawn: {path}")
    option = "" if database == DEFAULT_DATABASE else f" --database {database}"
    console.print(f"Look at them:  [bold]safe-sail serve{option}[/bold]")


def _ranking_table(
    ranking: Sequence[SaeRanking], results: Sequence[SaeConceptResult], facts: Sequence[SaeFacts]
) -> Table:
    shared = _shared_prefix([one.sae for one in ranking])
    where = f" ({shared}…)" if shared else ""
    table = Table(title=f"Which SAE tells the safety concepts apart?{where}", title_justify="left")
    for head in ("#", "SAE"):
        table.add_column(head, no_wrap=True)
    for head in ("specific ‰ [95 %]", "I_CDF / null ‰", "rate gap [95 %]", "features", "tied", "L0", "EV"):
        table.add_column(head, justify="right", no_wrap=True)
    fact_of = {one.sae: one for one in facts}
    place_of = {one.sae: str(one.place) for one in ranking}
    for one in ranking:
        paired = [r.specificity for r in results if r.score.sae == one.sae and r.specificity is not None]
        fact = fact_of.get(one.sae)
        table.add_row(
            str(one.place),
            one.sae.removeprefix(shared),
            "-" if one.specific is None else _interval(one.specific, PER_THOUSAND),
            _against_null(paired),
            _interval(one.rate_gap),
            "-" if one.n_specific is None else f"{one.n_specific:.1f}",
            " ".join(place_of[slug] for slug in one.tied_with) or "none",
            "-" if fact is None else f"{fact.l0:.1f}",
            "-" if fact is None else f"{fact.explained_variance:.2f}",
        )
    return table


def _concept_table(ranking: Sequence[SaeRanking], results: Sequence[SaeConceptResult]) -> Table:
    """Rate gaps, SAEs by place."""
    table = Table(title="Rate gap of the best feature, by concept and place", title_justify="left")
    table.add_column("concept", no_wrap=True)
    for one in ranking:
        table.add_column(str(one.place), justify="right")
    score_of = {(one.score.sae, one.score.concept): one.score for one in results}
    for concept in dict.fromkeys(one.score.concept for one in results):
        gaps = [score_of[one.sae, concept].rate_gap.value for one in ranking]
        table.add_row(concept, *(f"[bold]{gap:.2f}[/bold]" if gap == max(gaps) else f"{gap:.2f}" for gap in gaps))
    return table


def _against_null(paired: Sequence[SaeSpecificity]) -> str:
    if not paired:
        return "-"
    means = (fmean(one.i_cdf.value for one in paired), fmean(one.i_cdf_null.value for one in paired))
    return " / ".join(f"{PER_THOUSAND * mean:.1f}" for mean in means)


def _shared_prefix(slugs: Sequence[str]) -> str:
    """What all slugs begin with, up to a dot; empty for a single one."""
    if len(slugs) < 2:
        return ""
    same = next((n for n, letters in enumerate(zip(*slugs, strict=False)) if len(set(letters)) > 1), 0)
    return slugs[0][: slugs[0].rfind(".", 0, same) + 1]


def _interval(estimate: Estimate, times: float = 1) -> str:
    digits = 1 if times > 1 else 2
    value, low, high = (f"{times * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"
