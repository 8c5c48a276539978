"""All that is known of an SAE's features as one stream, lines of JSON or a Parquet file, in bounded memory."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import Engine
from starlette.responses import StreamingResponse

from api.bodies import feature_body
from api.deps import SaeSlug, SessionDep
from api.import_lines import reference_lines
from db.engine import reading
from db.interchange.bundles import references
from db.interchange.parquet import require_pyarrow
from db.interchange.parquet_features import stream_parquet
from db.lookup import find_sae
from db.prepared import run_in
from db.store import FeatureBundle, FeatureFilter, FeatureRows, bundle_of, page_rows, rows_of_features
from safe_sail.records import FeatureId

router = APIRouter(tags=["exports"])


class ExportFormat(StrEnum):
    """What the stream is made of."""

    NDJSON = "ndjson"
    PORTABLE = "portable"
    PARQUET = "parquet"


_LINES, _FILE = "application/x-ndjson", "application/vnd.apache.parquet"
_AT_ONCE = 200
"""Features of one transaction and one row group: a slow reader keeps no transaction open."""


@router.get(
    "/saes/{sae}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {_LINES: {}, _FILE: {}}}},
)
def export_features(
    request: Request,
    session: SessionDep,
    sae: SaeSlug,
    explained: Annotated[bool | None, Query(description="Only features with (true) or without an explanation.")] = None,
    form: Annotated[
        ExportFormat,
        Query(
            alias="format",
            description="Lines of JSON, the same behind lines of the runs, model and concepts that they refer to, or "
            "one Parquet file with a row a feature.",
        ),
    ] = ExportFormat.NDJSON,
) -> StreamingResponse:
    """Every feature of which anything is known, by ascending index: a line each, as `/v1/saes/{sae}/features/{index}`.

    A stream that was cut off has no last line feed, or as Parquet no end that a reader accepts; what is written
    meanwhile may or may not be in it.
    """
    find_sae(session, sae)
    portions = _portions(request.app.state.engine, sae, FeatureFilter(explained=explained))
    end = "parquet" if form is ExportFormat.PARQUET else "ndjson"
    headers = {"Content-Disposition": f'attachment; filename="{sae}.{end}"'}
    if form is ExportFormat.PARQUET:
        require_pyarrow()  # a stream that has begun cannot become a problem
        return StreamingResponse(stream_parquet(_bundles(portions)), media_type=_FILE, headers=headers)
    before = reference_lines(references(session, sae)) if form is ExportFormat.PORTABLE else []
    return StreamingResponse(chain(before, _lines(portions)), media_type=_LINES, headers=headers)


def _portions(engine: Engine, sae: str, filters: FeatureFilter) -> Iterator[list[tuple[int, FeatureRows]]]:
    cursor = None
    while True:
        with reading(engine) as session:
            page = page_rows(run_in(session), sae, filters=filters, cursor=cursor, limit=_AT_ONCE)
            indices = [index for _, index, *_ in page.rows]
            portion = list(zip(indices, rows_of_features(session, sae, indices), strict=True))
        yield portion
        cursor = page.next_cursor
        if cursor is None:
            return


def _lines(portions: Iterator[list[tuple[int, FeatureRows]]]) -> Iterator[bytes]:
    for portion in portions:
        yield b"".join(feature_body(index, found) + b"\n" for index, found in portion)


def _bundles(portions: Iterator[list[tuple[int, FeatureRows]]]) -> Iterator[list[FeatureBundle]]:
    for portion in portions:
        yield [bundle_of(FeatureId(sae=found.sae.slug, index=index), found) for index, found in portion]
