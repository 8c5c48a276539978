"""Safety circuits in the store: units with their probabilities, the search behind them, and its evaluations.

Rule of keys as in `saving`: the same slug again replaces what was there. A circuit that is saved again takes the
evaluations of its former units away, since they describe other units.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import require_limit
from db.store import rows
from db.store.loading import Kept
from db.store.saving import require_run
from db.store.slugs import Named, kept, load_named, require_subjects, row_named
from db.store.upserts import upsert
from db.store.whole import to_json
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitMember,
    CircuitSearch,
    CircuitUnit,
    FeatureId,
    parse_unit,
)

_CIRCUITS = Named(tables.CircuitRow, "circuit", "list_circuits")
_SEARCHES = Named(tables.CircuitSearchRow, "search for a circuit", "list_circuits")


def save_circuit(session: Session, circuit: Circuit, *, run_id: str) -> None:
    """Keeps a circuit and its units; its model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_subjects(session, run_id, circuit.slug, circuit.model_id)
    for row in (tables.CircuitEvaluationRow, tables.CircuitMemberRow):
        session.execute(delete(row).where(row.circuit == circuit.slug))
    columns: rows.Columns = {
        name: getattr(circuit, name)
        for name in (
            "slug",
            "model_id",
            "behaviour",
            "method",
            "ablation",
            "n_heads",
            "n_neurons",
            "n_features",
            "start_model",
        )
    }
    upsert(session, tables.CircuitRow, [columns | {"run_id": run_id}], key=("slug",))
    members: list[rows.Columns] = [
        {"circuit": circuit.slug, "unit": str(one.unit), "place": place, "probability": one.probability}
        for place, one in enumerate(circuit.members)
    ]
    upsert(session, tables.CircuitMemberRow, members, key=("circuit", "unit"))


def save_circuit_search(session: Session, search: CircuitSearch, *, run_id: str) -> None:
    """Keeps a search and the circuits it ended with.

    Raises:
        NotFound: the run or the model is not kept.
    """
    for circuit in (search.circuit, search.alone):
        if circuit is not None:
            save_circuit(session, circuit, run_id=run_id)
    columns: rows.Columns = {
        "slug": search.slug,
        "model_id": search.model_id,
        "objective": search.objective,
        "circuit": search.circuit.slug,
        "alone": search.alone and search.alone.slug,
        "record": [to_json(search)],
        "run_id": run_id,
    }
    upsert(session, tables.CircuitSearchRow, [columns], key=("slug",))


def save_circuit_evaluation(session: Session, evaluation: CircuitEvaluation, *, run_id: str) -> None:
    """Keeps what a circuit does on held-out prompts under one ablation.

    Raises:
        NotFound: the run or the circuit is not kept.
    """
    require_run(session, run_id)
    row_named(session, _CIRCUITS, evaluation.circuit)
    columns: rows.Columns = {
        "circuit": evaluation.circuit,
        "ablation": evaluation.ablation,
        "record": [to_json(evaluation)],
        "run_id": run_id,
    }
    upsert(session, tables.CircuitEvaluationRow, [columns], key=("circuit", "ablation"))


def load_circuit(session: Session, slug: str) -> Kept[Circuit]:
    """One circuit with its units.

    Raises:
        NotFound: no circuit has this slug.
    """
    row: tables.CircuitRow = row_named(session, _CIRCUITS, slug)
    members = tables.CircuitMemberRow
    found = session.scalars(select(members).where(members.circuit == slug).order_by(members.place))
    circuit = Circuit(
        slug=row.slug,
        model_id=row.model_id,
        behaviour=row.behaviour,
        method=row.method,
        ablation=row.ablation,
        members=tuple(CircuitMember(unit=_unit(one.unit), probability=one.probability) for one in found),
        n_heads=row.n_heads,
        n_neurons=row.n_neurons,
        n_features=row.n_features,
        start_model=row.start_model,
    )
    return Kept(circuit, row.run_id)


def load_circuit_search(session: Session, slug: str) -> Kept[CircuitSearch]:
    """One search, whole.

    Raises:
        NotFound: no search has this slug.
    """
    return load_named(session, _SEARCHES, CircuitSearch, slug)


def load_circuit_evaluations(session: Session, slug: str) -> list[Kept[CircuitEvaluation]]:
    """Evaluations of a circuit, by the name of their ablation; empty where it was not evaluated.

    Raises:
        NotFound: no circuit has this slug.
    """
    row_named(session, _CIRCUITS, slug)
    table = tables.CircuitEvaluationRow
    found = session.scalars(select(table).where(table.circuit == slug).order_by(table.ablation))
    return [kept(CircuitEvaluation, row) for row in found]


def list_circuits(
    session: Session,
    *,
    model_id: str | None = None,
    unit: CircuitUnit | None = None,
    limit: int = 100,
    after: str | None = None,
) -> list[Kept[Circuit]]:
    """Circuits by slug, of one model or of all, with a unit, if one is given; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    query = select(tables.CircuitRow.slug).order_by(tables.CircuitRow.slug).limit(limit)
    if after is not None:
        query = query.where(tables.CircuitRow.slug > after)
    if model_id is not None:
        query = query.where(tables.CircuitRow.model_id == model_id)
    if unit is not None:
        members = tables.CircuitMemberRow
        query = query.where(tables.CircuitRow.slug.in_(select(members.circuit).where(members.unit == str(unit))))
    return [load_circuit(session, slug) for slug in session.scalars(query)]


def _unit(name: str) -> CircuitUnit:
    return FeatureId.parse(name) if "/" in name else parse_unit(name)
