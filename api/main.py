"""The service: `create_app(settings)` gives the FastAPI app; importing this file does no work and loads no torch.

1. The engine is made, not connected: an app whose database is away starts, and answers 503 until it is back.
2. Routes: REST under /v1, health at /livez and /readyz, the page at / with its files under /static.
3. Every error becomes a problem; every request passes through `RequestFrame`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from api import metrics, problems
from api.access import Buckets, require_access
from api.deps import refuse_unknown_parameters
from api.direct import DirectAnswers
from api.lane import ShortLane
from api.middleware import RequestFrame
from api.openapi import describe
from api.pages.render import STATIC_FOLDER
from api.routes import concepts, exports, features, health, imports, jobs, live, methods, models, pages, runs, saes
from api.settings import ServiceSettings
from db.engine import make_engine
from safe_sail import __version__

DESCRIPTION = """Which features of a language model carry safety, and how we know.

Lists answer `{items, next_cursor}` and a `Link` header; pass `next_cursor` back as `cursor` to go on; it is opaque.
Every estimate carries its interval and its n; every ranking score carries a control. Errors are RFC 9457 problems.
Documented names and types stay; new fields and new optional parameters may appear."""


def create_app(settings: ServiceSettings) -> FastAPI:
    """The app that serves this database."""
    engine = make_engine(settings.database_url, read_only=True)
    write_engine = make_engine(settings.database_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.direct.close()
        engine.dispose()
        write_engine.dispose()

    app = FastAPI(
        title="Safe-SAIL",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        docs_url=None,  # both load scripts from elsewhere, which the content security policy forbids
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(
                RequestFrame,
                allowed_hosts=settings.allowed_hosts,
                max_body_bytes=settings.max_body_bytes,
                seconds=settings.request_seconds,
            ),
            Middleware(ShortLane),
        ],
    )
    app.state.engine = engine
    app.state.write_engine = write_engine
    app.state.known_parameters = {}
    app.state.direct = DirectAnswers(engine)
    app.state.settings = settings
    app.state.buckets = Buckets()
    app.state.metrics = metrics.Metrics(engine)
    strict = [Depends(refuse_unknown_parameters)]
    app.include_router(health.router, dependencies=strict)
    strict = [Depends(require_access), *strict]
    for part in (models, saes, features, concepts, runs, methods, exports, imports, jobs, live):
        app.include_router(part.router, prefix="/v1", dependencies=strict)
    app.include_router(metrics.router, dependencies=strict)
    app.include_router(pages.router, dependencies=strict, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC_FOLDER), name="static")
    problems.install(app)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app
