"""What routes ask for, as types: a session, the settings, parts of a path; and the check for unknown parameters."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, Path, Request
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, StringConstraints
from sqlalchemy.orm import Session

from api.settings import ServiceSettings
from db.engine import reading, writing
from db.migrate import require_head


def get_session(request: Request) -> Iterator[Session]:
    """Session of one read transaction: a request sees one state of the database."""
    with reading(request.app.state.engine) as session:
        yield session


async def get_settings(request: Request) -> ServiceSettings:
    """Settings that the app was created with."""
    settings = request.app.state.settings
    assert isinstance(settings, ServiceSettings)
    return settings


def get_writing_session(request: Request) -> Iterator[Session]:
    """Session of one write transaction: committed when the route returns, undone if it raises."""
    require_head(request.app.state.engine)  # a writer would create a missing SQLite file
    with writing(request.app.state.write_engine) as session:
        yield session


# scope="function": the transaction ends before the answer is sent, so a slow client keeps no connection
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
WritingDep = Annotated[Session, Depends(get_writing_session, scope="function")]
SettingsDep = Annotated[ServiceSettings, Depends(get_settings)]

SLUG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SaeSlug = Annotated[
    str, Path(pattern=SLUG_PATTERN, max_length=200, description="Slug of an SAE, as `/v1/saes` lists it.")
]
FeatureIndex = Annotated[int, Path(ge=0, description="Feature of the SAE, counted from 0; below its width.")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
JobIdentity = Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200, description="Id of a job.")]
RunIdentity = Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200, description="Id of a run.")]


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuses query parameters that the route lacks, and one given twice that is no list: no filter may pass unseen.

    Raises:
        RequestValidationError: naming each such parameter.
    """
    if not request.scope["query_string"]:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    kept: dict[int, tuple[frozenset[str], frozenset[str]]] = request.app.state.known_parameters
    known, lists = kept.get(id(route)) or kept.setdefault(id(route), _known_parameters(route))
    names = [name for name, _ in request.query_params.multi_items()]
    errors = [
        {
            "type": "extra_forbidden" if name not in known else "given_twice",
            "loc": ("query", name[:100]),
            "msg": f"There is no such parameter; {_offered(known)}." if name not in known else "Given more than once.",
            "input": request.query_params[name],
        }
        for name in sorted(set(names))
        if name not in known or (names.count(name) > 1 and name not in lists)
    ]
    if errors:
        raise RequestValidationError(errors)


def _known_parameters(route: APIRoute) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the route's own query parameters, and of those that are lists; a model stands for its fields."""
    kinds: dict[str, Any] = {}
    for field in _query_fields(route.dependant):
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kinds |= {name: one.annotation for name, one in annotation.model_fields.items()}
        else:
            kinds[field.alias] = annotation
    lists = [name for name, kind in kinds.items() if list in (get_origin(kind), *map(get_origin, get_args(kind)))]
    return frozenset(kinds), frozenset(lists)


def _query_fields(dependant: Dependant) -> Iterator[ModelField]:
    yield from dependant.query_params
    for inner in dependant.dependencies:
        yield from _query_fields(inner)


def _offered(known: frozenset[str]) -> str:
    return f"known are {', '.join(sorted(known))}" if known else "this address takes none"
