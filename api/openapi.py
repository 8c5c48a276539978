"""The OpenAPI document, brought to what the service does: the one place where FastAPI's document is corrected.

1. FastAPI declares its own validation error shape; every operation here answers with a problem instead.
2. Each operation lists the problems that it can give, as `application/problem+json`.
3. Descriptions of the library's records come from their docstrings, field by field.
"""

import ast
import inspect
import sys
import textwrap
from functools import cache
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import schemas
from api.problems import BY_STATUS, MEDIA_TYPE, PROBLEMS, Problem
from safe_sail import records, settings
from safe_sail.errors import BadInput, DatabaseUnreachable, JobConflict, JobFailed, NotFound
from safe_sail.settings import jobs, live

_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_ROOMS = (records, settings, jobs, live, schemas)
"""Where the classes of the document's parts are defined, each field with its text."""
OPEN_PATHS = ("/livez", "/readyz")
_HOST_REFUSED = "This service does not answer to this host name."


def describe(app: FastAPI) -> dict[str, Any]:
    """The app's document; built once, then kept."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            license_info=app.license_info,
            routes=app.routes,
        )
        _declare_problems(document)
        _describe_records(document["components"]["schemas"])
        app.openapi_schema = document
    return app.openapi_schema


def _declare_problems(document: dict[str, Any]) -> None:
    parts = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        parts.pop(name, None)
    model = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    parts.update(model.pop("$defs"))
    parts["Problem"] = model
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses["421"] = _problem(_HOST_REFUSED)
            responses["422"] = _problem(PROBLEMS[BadInput].title + ".")
            responses["503"] = _problem(PROBLEMS[DatabaseUnreachable].title + ".")
            responses["504"] = _problem(BY_STATUS[504].title + ".")
            names_something = {"path", "concept", "sae"} & {
                key for parameter in operation.get("parameters", ()) for key in (parameter["in"], parameter["name"])
            }
            if names_something:
                responses["404"] = _problem(PROBLEMS[NotFound].title + ".")
            for status, kind in (("401", BY_STATUS[401]), ("403", BY_STATUS[403]), ("429", BY_STATUS[429])):
                if path not in OPEN_PATHS:
                    responses[status] = _problem(kind.title + ".")
            if "requestBody" in operation:
                responses["413"] = _problem(BY_STATUS[413].title + ".")
            is_live = operation.get("tags") == ["live"]
            if is_live or path.endswith(("/cancel", "/retry")):
                responses["409"] = _problem(PROBLEMS[JobConflict].title + ".")
            if is_live:
                responses["404"] = _problem(PROBLEMS[NotFound].title + ".")
                responses["500"] = _problem(PROBLEMS[JobFailed].title + ".")
            operation["responses"] = dict(sorted(responses.items()))
    del document["paths"]["/livez"]["get"]["responses"]["503"]


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}


def _describe_records(parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        owner = next(
            (getattr(room, name) for room in (records, settings, jobs, live, schemas) if hasattr(room, name)), None
        )
        described = _docstrings(sys.modules[owner.__module__]).get(name) if owner is not None else None
        if described is None:
            continue
        part["description"] = described[""]
        for field, entry in part.get("properties", {}).items():
            if field in described:
                entry.setdefault("description", described[field])


@cache
def _docstrings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class name to field name to the text under the field; the class's own text is under the empty name."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = {"": ast.get_docstring(node) or ""}
        for field, below in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                texts[field.target.id] = textwrap.dedent(str(below.value.value)).strip()  # type: ignore[attr-defined]
        found[node.name] = texts
    return found
