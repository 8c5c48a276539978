"""What the templates show, gathered from the store: rows of the overview, runs behind a feature, addresses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from db.store import FeatureBundle, SaeListing, load_run
from safe_sail.records import RunInfo, SaeFacts, SaeRef, SaeScore, highest_first


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeLine:
    """One SAE on the overview."""

    sae: SaeRef
    facts: SaeFacts | None
    scores: Mapping[str, SaeScore]
    """By concept."""
    n_collected: int
    n_explained: int

    @property
    def mean_gap(self) -> float | None:
        """Mean rate gap over the concepts it was scored on; None before scoring."""
        gaps = [score.rate_gap.value for score in self.scores.values()]
        return sum(gaps) / len(gaps) if gaps else None


def sae_line(listing: SaeListing) -> SaeLine:
    """The line of one SAE."""
    return SaeLine(
        sae=listing.sae,
        facts=None if listing.facts is None else listing.facts.record,
        scores={kept.record.concept: kept.record for kept in listing.scores},
        n_collected=listing.n_collected,
        n_explained=listing.n_explained,
    )


def by_mean_gap(lines: Sequence[SaeLine]) -> list[SaeLine]:
    """Lines by descending mean rate gap (ties: slug); unscored SAEs last."""
    return sorted(lines, key=lambda line: (2.0 if line.mean_gap is None else -line.mean_gap, line.sae.slug))


def best_of_each(lines: Sequence[SaeLine]) -> dict[str, str]:
    """Concept to the slug of the SAE with the largest rate gap (ties: first slug)."""
    best: dict[str, SaeScore] = {}
    for score in highest_first([score for line in lines for score in line.scores.values()]):
        best.setdefault(score.concept, score)
    return {concept: score.sae for concept, score in best.items()}


def runs_behind(session: Session, bundle: FeatureBundle) -> list[RunInfo]:
    """The runs that wrote any part of the bundle, newest first."""
    ids = {kept.run_id for kept in bundle.concept_scores}
    ids |= {kept.run_id for one in bundle.explanations for kept in (one.explanation, *one.scores)}
    if bundle.top_contexts is not None:
        ids.add(bundle.top_contexts.run_id)
    runs = [load_run(session, run_id) for run_id in ids]
    return sorted(runs, key=lambda run: (run.started, run.run_id), reverse=True)


def address(path: str, parameters: Mapping[str, object | None] | Sequence[tuple[str, object | None]]) -> str:
    """Path with those parameters that are set; a sequence may name one several times."""
    pairs = parameters.items() if isinstance(parameters, Mapping) else parameters
    given = [(name, value) for name, value in pairs if value not in (None, "")]
    return f"{path}?{urlencode(given)}" if given else path
