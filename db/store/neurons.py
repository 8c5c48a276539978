"""Safety neurons in the store: searches, comparisons of two aims, and guards, read whole.

Rule of keys as in `saving`: the same slug again replaces what was there.
"""

from sqlalchemy.orm import Session

from db import tables
from db.store import rows
from db.store.loading import Kept
from db.store.slugs import Named, list_named, load_named, require_subjects, row_named
from db.store.upserts import upsert
from db.store.whole import from_json, to_json
from safe_sail.errors import BadRecord
from safe_sail.records import GuardEvaluation, NeuronChange, NeuronSearch, NeuronTax

_SEARCHES = Named(tables.NeuronSearchRow, "search for safety neurons", "list_neuron_searches")
_TAXES = Named(tables.NeuronTaxRow, "comparison of safety and helpfulness", "list_neuron_taxes")
_GUARDS = Named(tables.GuardRow, "evaluation of guards", "list_guard_evaluations")


def save_neuron_search(session: Session, search: NeuronSearch, change: NeuronChange, *, run_id: str) -> None:
    """Keeps a search with the change scores of all neurons; its models must be kept before.

    Raises:
        NotFound: the run or a model is not kept.
        BadRecord: the scores are of another search.
    """
    if search.slug != change.slug:
        raise BadRecord(f"a search is kept with its own change scores; got {search.slug} with {change.slug}.")
    require_subjects(session, run_id, search.slug, search.first_model, search.second_model)
    columns: rows.Columns = {
        "slug": search.slug,
        "first_model": search.first_model,
        "second_model": search.second_model,
        "record": [to_json(search)],
        "change": [to_json(change)],
        "run_id": run_id,
    }
    upsert(session, tables.NeuronSearchRow, [columns], key=("slug",))


def load_neuron_search(session: Session, slug: str) -> Kept[NeuronSearch]:
    """One search, whole, without the scores of all neurons.

    Raises:
        NotFound: no search has this slug.
    """
    return load_named(session, _SEARCHES, NeuronSearch, slug)


def load_neuron_change(session: Session, slug: str) -> Kept[NeuronChange]:
    """Change scores of all neurons of a search.

    Raises:
        NotFound: no search has this slug.
    """
    row = row_named(session, _SEARCHES, slug)
    return Kept(from_json(NeuronChange, row.change[0]), row.run_id)


def list_neuron_searches(
    session: Session, *, model_id: str | None = None, limit: int = 100, after: str | None = None
) -> list[Kept[NeuronSearch]]:
    """Searches by slug; those with the model on one side, if one is named; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    row = tables.NeuronSearchRow
    where = () if model_id is None else ((row.first_model == model_id) | (row.second_model == model_id),)
    return list_named(session, _SEARCHES, NeuronSearch, *where, limit=limit, after=after)


def save_neuron_tax(session: Session, tax: NeuronTax, *, run_id: str) -> None:
    """Keeps a comparison of a safety and a helpfulness pair; its models must be kept before.

    Raises:
        NotFound: the run or a model is not kept.
    """
    require_subjects(session, run_id, tax.slug, tax.base_model, tax.safety_model, tax.helpful_model)
    columns: rows.Columns = {
        "slug": tax.slug, "base_model": tax.base_model, "record": [to_json(tax)], "run_id": run_id
    }  # fmt: skip
    upsert(session, tables.NeuronTaxRow, [columns], key=("slug",))


def load_neuron_tax(session: Session, slug: str) -> Kept[NeuronTax]:
    """One comparison, whole.

    Raises:
        NotFound: no comparison has this slug.
    """
    return load_named(session, _TAXES, NeuronTax, slug)


def list_neuron_taxes(session: Session, *, limit: int = 100, after: str | None = None) -> list[Kept[NeuronTax]]:
    """Comparisons by slug; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    return list_named(session, _TAXES, NeuronTax, limit=limit, after=after)


def save_guard_evaluation(session: Session, evaluation: GuardEvaluation, *, run_id: str) -> None:
    """Keeps what the guards of a model do; the model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_subjects(session, run_id, evaluation.slug, evaluation.model_id)
    columns: rows.Columns = {
        "slug": evaluation.slug, "model_id": evaluation.model_id, "record": [to_json(evaluation)], "run_id": run_id
    }  # fmt: skip
    upsert(session, tables.GuardRow, [columns], key=("slug",))


def load_guard_evaluation(session: Session, slug: str) -> Kept[GuardEvaluation]:
    """What the guards of one model do, whole.

    Raises:
        NotFound: no evaluation has this slug.
    """
    return load_named(session, _GUARDS, GuardEvaluation, slug)


def list_guard_evaluations(
    session: Session, *, model_id: str | None = None, limit: int = 100, after: str | None = None
) -> list[Kept[GuardEvaluation]]:
    """Evaluations by slug; those of one model, if one is named; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    where = () if model_id is None else (tables.GuardRow.model_id == model_id,)
    return list_named(session, _GUARDS, GuardEvaluation, *where, limit=limit, after=after)
