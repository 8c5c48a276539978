"""What the demo found, as tables for people or JSON for programs."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean, stdev

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from safe_sail.records import Context, Estimate, SaeFacts, SaeScore
from scripts.demo_results import DemoResults

SILENT = "it is silent on every context that may explain it"
N_SHOWN = 10
WIDTH = 112
"""Columns of the printed tables where there is no terminal to ask."""
CONTEXT_TOKENS = 9
"""Tokens shown on either side of the peak."""


def print_report(results: DemoResults, *, database: str, as_json: bool) -> None:
    """Print which SAE carries the concepts, ten features of it, what it cost, and what to type next."""
    if as_json:
        found = {
            "facts": [asdict(one) for one in results.facts],
            "scores": [asdict(one) for one in results.scores],
            "explanations": [
                {"feature": str(feature), "text": one.explanation and one.explanation.text,
                 "failure": "" if one.explanation else SILENT}
                for feature, one in results.features.items()
            ],
        }  # fmt: skip
        print(json.dumps(found, indent=2))
        return
    console = Console(
        highlight=False, soft_wrap=False, width=max(WIDTH, Console().width) if Console().is_terminal else WIDTH
    )
    winner = _print_saes(console, results.facts, results.scores)
    _print_concepts(console, results.scores)
    _print_features(console, winner, results)
    _print_next(console, results, database)


def _print_concepts(console: Console, scores: Sequence[SaeScore]) -> None:
    table = Table(title="Which SAE has the cleanest feature of each concept?", title_justify="left", box=SIMPLE_HEAD)
    for head in ("concept", "SAE", "feature"):
        table.add_column(head, no_wrap=True)
    for head in ("rate gap [95 %]", "chance", "n"):
        table.add_column(head, justify="right", no_wrap=True)
    for concept in sorted({score.concept for score in scores}):
        best = max((s for s in scores if s.concept == concept), key=lambda s: (s.rate_gap.value, s.auroc.value))
        table.add_row(
            concept, best.sae, f"#{best.best_feature.index}", _interval(best.rate_gap),
            f"{best.control_rate_gap.value:+.2f}", str(best.rate_gap.n),
        )  # fmt: skip
    console.print(table)
    console.print("The largest of several SAEs is a little too large: the texts that judge also choose among them.\n")


def _print_saes(console: Console, facts: Sequence[SaeFacts], scores: Sequence[SaeScore]) -> str:
    concepts = sorted({score.concept for score in scores})
    title = f"Which SAE carries the safety concepts? Mean over {len(concepts)} concepts"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("SAE", no_wrap=True)
    for head in ("rate gap", "chance", "F1", "AUROC", "spec.", "L0", "EV", "CE", "dead"):
        table.add_column(head, justify="right", no_wrap=True)
    of = {one.sae: [score for score in scores if score.sae == one.sae] for one in facts}
    ranked = sorted(facts, key=lambda one: -fmean(score.rate_gap.value for score in of[one.sae]))
    for one in ranked:
        mine = of[one.sae]
        table.add_row(
            one.sae,
            _mean(s.rate_gap.value for s in mine),
            f"{fmean(s.control_rate_gap.value for s in mine):+.2f}",
            f"{fmean(s.f1.value for s in mine):.2f}",
            f"{fmean(s.auroc.value for s in mine):.2f}",
            f"{fmean(s.n_specific for s in mine):.1f}",
            f"{one.l0:.1f}",
            f"{one.explained_variance:.2f}",
            f"{one.ce_recovered:.3f}",
            f"{one.dead_share:.0%}",
        )
    console.print(table)
    n = scores[0].rate_gap.n
    console.print(
        f"rate gap: how much oftener a concept's best feature fires on texts about it than on others, ± 1.96 standard\n"
        f"errors over concepts; other texts chose it (n={n} judging texts a concept). chance: shuffled labels.\n"
        "spec.: features specific to a concept. EV: explained variance. CE: share of the cross-entropy recovered.\n"
    )
    return ranked[0].sae


def _print_features(console: Console, winner: str, results: DemoResults) -> None:
    table = Table(
        title=f"What the best features of {winner} fire on", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 1, 1)
    )
    table.add_column("concept\nfeature", no_wrap=True)
    table.add_column("rate gap\n[95 %]", no_wrap=True)
    table.add_column("explanation, made without an LLM\nstrongest context", ratio=1)
    table.add_column("agrees [95 %]\nothers' explanations", no_wrap=True)
    # a demo of few features explains the best of the first concepts alone
    explained = (s for s in results.scores if s.sae == winner and s.best_feature in results.features)
    for score in sorted(explained, key=lambda s: -s.rate_gap.value)[:N_SHOWN]:
        found = results.features[score.best_feature]
        says = Text(found.explanation.text if found.explanation else f"not explained: {SILENT}")
        if found.strongest is not None:
            says.append("\n")
            says.append_text(highlighted(found.strongest))
        agrees = f"{_interval(found.score.score)}\n{found.score.control.value:+.2f}" if found.score else "-"
        gap = _interval(score.rate_gap).replace(" ", "\n", 1)
        table.add_row(f"{score.concept}\n#{score.best_feature.index}", gap, says, agrees)
    console.print(table)
    console.print(
        "agrees: correlation of predicted and true activation, on contexts the explanation was not made from;\n"
        "below it the mean of other features' explanations.\n"
    )


def _print_next(console: Console, results: DemoResults, database: str) -> None:
    found = results.features.values()
    failed = sum(one.explanation is None for one in found)
    unscored = sum(one.explanation is not None and one.score is None for one in found)
    option = "" if database == "sqlite:///safe-sail.db" else f" --database {database}"
    assert results.run.finished is not None
    seconds = (results.run.finished - results.run.started).total_seconds()
    console.print(
        f"{len(found) - failed} features explained, {failed} without explanation, {unscored} without score.\n"
        f"Cost: {seconds:.0f} seconds on {results.run.device}; no language model was asked: 0 tokens, 0 dollars.\n"
        f"All kept in {database}\nLook at them:  [bold]safe-sail serve{option}[/bold]   then open http://127.0.0.1:8420"
    )


def highlighted(context: Context) -> Text:
    """The context around its peak; firing tokens are bold, the strongest reversed."""
    first, last = max(0, context.peak - CONTEXT_TOKENS), context.peak + CONTEXT_TOKENS + 1
    text = Text("… " if first else "")
    for token, activation in zip(context.tokens[first:last], context.activations[first:last], strict=True):
        share = activation / context.peak_activation if context.peak_activation > 0 else 0
        style = "reverse bold" if share > 0.5 else "bold underline" if share > 0 else "dim"
        word = token.replace("\n", "⏎").lstrip(" ")
        text.append(" " * (len(token) - len(word)))
        # The mark survives where colours do not: in a file, or pasted into a message.
        text.append(f"«{word}»" if share > 0.5 else word, style=style)
    return text.append(" …" if last < len(context.tokens) else "")


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return f"{fmean(found):.2f}±{1.96 * error:.2f}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
