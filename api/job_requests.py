"""The body of a request for a job, one type a kind, made from JOB_KINDS: the OpenAPI document has the library's types.

Every setting that is unknown, outside its range or not finite is refused before anything is kept.
"""

from dataclasses import MISSING
from dataclasses import fields as dataclass_fields
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from safe_sail.settings.jobs import JOB_KINDS

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class AnyJobRequest(BaseModel):
    """What the types of the kinds share."""

    model_config = _STRICT

    kind: str
    settings: Any


def _request_type(kind: str, settings: type) -> type[AnyJobRequest]:
    said = "What the command is told."
    must_be_told = any(one.default is MISSING and one.default_factory is MISSING for one in dataclass_fields(settings))
    told = Field(description=said) if must_be_told else Field(default_factory=settings, description=said)
    fields: dict[str, Any] = {
        "kind": (Literal[kind], Field(description="Name of the command.")),
        "settings": (settings, told),
    }
    made = create_model(
        f"{settings.__name__}Request", __base__=AnyJobRequest, __doc__=f"A job of the kind `{kind}`.", **fields
    )
    assert issubclass(made, AnyJobRequest)
    return made


REQUEST_TYPES: dict[str, type[AnyJobRequest]] = {kind: _request_type(kind, of) for kind, of in JOB_KINDS.items()}

JobRequest: Any = Annotated[reduce(or_, REQUEST_TYPES.values()), Field(discriminator="kind")]
"""Any of them, told apart by `kind`."""


def settings_as_json(request: AnyJobRequest) -> dict[str, Any]:
    """The settings with every default filled in, as JSON values."""
    values: dict[str, Any] = TypeAdapter(JOB_KINDS[request.kind]).dump_python(request.settings, mode="json")
    return values
