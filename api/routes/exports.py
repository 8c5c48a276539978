"""All that is known of an SAE's features as one stream: a line of JSON a feature, in bounded memory."""

import json
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import Engine
from starlette.responses import StreamingResponse

from api.deps import SaeSlug, SessionDep
from api.schemas import feature_detail
from api.wire import as_wire
from db.engine import reading
from db.lookup import find_sae
from db.store import FeatureFilter, list_features, load_feature
from safe_sail.records import FeatureId

router = APIRouter(tags=["exports"])

MEDIA_TYPE = "application/x-ndjson"
_AT_ONCE = 200
"""Features of one transaction: a slow reader keeps no transaction open."""


@router.get("/saes/{sae}/export", response_class=StreamingResponse, responses={200: {"content": {MEDIA_TYPE: {}}}})
def export_features(
    request: Request,
    session: SessionDep,
    sae: SaeSlug,
    explained: Annotated[bool | None, Query(description="Only features with (true) or without an explanation.")] = None,
) -> StreamingResponse:
    """Every feature of which anything is known, by ascending index: a line each, as `/v1/saes/{sae}/features/{index}`.

    A stream that was cut off has no last line feed; what is written meanwhile may or may not be in it.
    """
    find_sae(session, sae)
    lines = _lines(request.app.state.engine, sae, FeatureFilter(explained=explained))
    name = f'attachment; filename="{sae}.ndjson"'
    return StreamingResponse(lines, media_type=MEDIA_TYPE, headers={"Content-Disposition": name})


def _lines(engine: Engine, sae: str, filters: FeatureFilter) -> Iterator[bytes]:
    cursor = None
    while True:
        with reading(engine) as session:
            page = list_features(session, sae, filters=filters, cursor=cursor, limit=_AT_ONCE)
            bundles = [load_feature(session, FeatureId(sae=sae, index=row.index)) for row in page.rows]
        part = [json.dumps(as_wire(feature_detail(one)), ensure_ascii=False, allow_nan=False) for one in bundles]
        yield "".join(f"{line}\n" for line in part).encode()
        cursor = page.next_cursor
        if cursor is None:
            return
