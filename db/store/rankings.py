"""What SAEs tell apart of each concept, and the rankings of runs, whole as one JSON text each.

Specificity follows the rule of keys in `saving`. A ranking belongs to its run, since a place means something among the
SAEs of that run only; saved again under the same run, it replaces what was there.
"""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae, require_limit
from db.packing import is_plain_text
from db.store import rows
from db.store.loading import Kept
from db.store.saving import require_run
from db.store.upserts import upsert
from db.store.whole import from_json, to_json
from safe_sail.errors import BadRecord, NotFound
from safe_sail.records import RunInfo, SaeRanking, SaeSpecificity


def save_sae_specificity(session: Session, found: SaeSpecificity, *, run_id: str) -> None:
    """Keeps how much of an SAE tells a concept's pairs apart.

    Raises:
        NotFound: the run, the SAE or the concept is not kept.
        BadRecord: the SAE has another width.
    """
    require_run(session, run_id)
    sae = find_sae(session, found.sae)
    if sae.width != found.n_features:
        raise BadRecord(f"{found.sae} has {sae.width} features; its score speaks of {found.n_features}.")
    if not is_plain_text(found.concept) or session.get(tables.ConceptRow, found.concept) is None:
        raise NotFound(f"concept `{found.concept}` is not in the database; save the concepts first.")
    columns: rows.Columns = {
        "sae_key": sae.sae_key,
        "concept": found.concept,
        "record": [to_json(found)],
        "run_id": run_id,
    }
    upsert(session, tables.SaeSpecificityRow, [columns], key=("sae_key", "concept"))


def load_sae_specificity(session: Session, slug: str) -> list[Kept[SaeSpecificity]]:
    """How much of an SAE tells each concept's pairs apart, by concept; empty before scoring.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = tables.SaeSpecificityRow
    found = session.scalars(select(row).where(row.sae_key == find_sae(session, slug).sae_key).order_by(row.concept))
    return [Kept(from_json(SaeSpecificity, one.record[0]), one.run_id) for one in found]


def save_sae_rankings(session: Session, ranking: Sequence[SaeRanking], *, run_id: str) -> None:
    """Keeps a run's ranking, whole.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: the places are not 1 to the number of SAEs.
    """
    require_run(session, run_id)
    if sorted(one.place for one in ranking) != list(range(1, len(ranking) + 1)):
        raise BadRecord(f"places of a ranking count from 1; got {[one.place for one in ranking]}.")
    session.execute(delete(tables.SaeRankingRow).where(tables.SaeRankingRow.run_id == run_id))
    columns: list[rows.Columns] = [
        {"run_id": run_id, "sae_key": find_sae(session, one.sae).sae_key, "record": [to_json(one)]} for one in ranking
    ]
    upsert(session, tables.SaeRankingRow, columns, key=("run_id", "sae_key"))


def load_sae_rankings(session: Session, run_id: str) -> list[SaeRanking]:
    """A run's ranking, best first; empty where the run ranked nothing.

    Raises:
        NotFound: no such run is kept.
    """
    require_run(session, run_id)
    row = tables.SaeRankingRow
    found = session.scalars(select(row).where(row.run_id == run_id))
    return sorted((from_json(SaeRanking, one.record[0]) for one in found), key=lambda one: one.place)


def list_sae_rankings(session: Session, *, limit: int = 10) -> list[tuple[RunInfo, list[SaeRanking]]]:
    """Runs that ranked SAEs, newest first, each with its ranking, best first.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    run, row = tables.RunRow, tables.SaeRankingRow
    ranked = select(run).where(run.run_id.in_(select(row.run_id))).order_by(run.started.desc(), run.run_id.desc())
    found = session.scalars(ranked.limit(limit)).all()
    return [(rows.run_of(one), load_sae_rankings(session, one.run_id)) for one in found]
