"""Links of features as tables for people or JSON for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.table import Table

from safe_sail.records import FeatureLink, LinkFlow, LinkKind, LinkMeasure, LinkStudy
from scripts.options import DEFAULT_DATABASE

N_SHOWN = 4
"""Linked units, and linked directions, of each feature and flow in the table; the database has all."""
_ENDS = (LinkKind.DIRECTION, LinkKind.REFUSAL)
"""What a feature does in the end: shown however many units read it more strongly."""
ARROWS = {LinkFlow.INTO_FEATURE: "<-", LinkFlow.OUT_OF_FEATURE: "->"}


def print_links(studies: Sequence[LinkStudy], *, database: str, as_json: bool) -> None:
    """Print each study's strongest links and what chance gave in the same tests."""
    if as_json:
        print(json.dumps([asdict(study) for study in studies], indent=2))
        return
    console = Console(highlight=False, width=max(120, Console().width))
    for study in studies:
        console.print(_table(study))
        console.print(
            f"{study.n_linked} of {study.n_tested} tests are links; {study.n_linked_shuffled} with the texts of random "
            f"pairs in each other's place. {study.n_passes} passes.\n"
            "weights: share of the feature's input that the other end writes directly, on texts with the concept minus "
            "their\n  twins without it.  cause: what of the activation (of the projection, of the refusal metric) goes "
            "when the other\n  end (when the feature) is ablated.  control: 95 % of random units of the layer, sets or "
            "directions do less than this.\n* linear path too: both measures hold, with one sign."
        )
        for note in study.notes:
            console.print(f"Note: {note}")
        console.print(f"Kept as [bold]{study.slug}[/bold] in {database}.\n")
    if studies:
        option = "" if database == DEFAULT_DATABASE else f" --database {database}"
        console.print(f"Look at the features:  [bold]safe-sail serve{option}[/bold]")


def _table(study: LinkStudy) -> Table:
    table = Table(title=f"Links of {study.sae} in {study.model_id}", title_justify="left")
    for head in ("concept", "feature"):
        table.add_column(head, no_wrap=True)
    table.add_column("linked with", overflow="fold")  # names of sets are long, and numbers shall stand whole
    for head in ("weights [95 %]", "cause [95 %]", "control", "q"):
        table.add_column(head, justify="right", no_wrap=True)
    for link, is_first in _shown(study):
        measure = link.cause or link.weights
        assert measure is not None
        table.add_row(
            link.concept if is_first else "",
            f"#{link.feature.index}" if is_first else "",
            f"{ARROWS[link.flow]} {link.target}{'*' if link.is_direct else ''}",
            _value(link.weights),
            _value(link.cause),
            f"{measure.control_high:.2f}",
            f"{measure.q_value:.0e}",
        )
    return table


def _shown(study: LinkStudy) -> Iterator[tuple[FeatureLink, bool]]:
    """The strongest links of each feature and flow, and whether each is the feature's first."""
    for _, of_feature in groupby(study.links, lambda link: (link.concept, link.feature)):
        is_first = True
        for _, some in groupby(of_feature, lambda link: link.flow):
            linked = [one for one in some if one.is_linked]
            units = [one for one in linked if one.kind not in _ENDS]
            ends = [one for one in linked if one.kind in _ENDS]
            for link in units[:N_SHOWN] + ends[:N_SHOWN]:
                yield link, is_first
                is_first = False


def _value(measure: LinkMeasure | None) -> str:
    if measure is None:
        return "-"
    value = measure.value
    return f"{value.value:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
