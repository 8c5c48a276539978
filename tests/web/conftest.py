"""The service in a process of its own on a loopback port, and a real Chromium that looks at it."""

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from db.engine import make_engine
from db.migrate import upgrade
from tests.api.seed import fill
from tests.api.seed_live import ANSWERS, answer

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SWITCHES = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
PATIENCE_MS = 120_000
"""What a page on a busy machine may take; only what never comes takes so long."""
expect.set_options(timeout=PATIENCE_MS)
_SERVE = """
import sys, socket, uvicorn
from api.main import create_app
from api.settings import ServiceSettings

door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
app = create_app(ServiceSettings(database_url=sys.argv[1]))
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])
"""


def serve(database: Path) -> Iterator[str]:
    """Address of a service over a database, until the generator is closed."""
    command = [sys.executable, "-c", _SERVE, f"sqlite:///{database}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        with urllib.request.urlopen(f"{address}/livez", timeout=300) as answer:
            assert answer.status == 200
        yield address
        process.terminate()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the service over the filled store."""
    database = tmp_path_factory.mktemp("site") / "store.db"
    engine = make_engine(f"sqlite:///{database}")
    upgrade(engine)
    fill(engine)
    for kind in ANSWERS:
        answer(engine, kind)
    engine.dispose()
    yield from serve(database)


@pytest.fixture(scope="session")
def empty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the service over a store with nothing in it."""
    database = tmp_path_factory.mktemp("site") / "empty.db"
    engine = make_engine(f"sqlite:///{database}")
    upgrade(engine)
    engine.dispose()
    yield from serve(database)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    if _CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH; `make test-browser` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_SWITCHES, timeout=PATIENCE_MS)
        yield browser
        browser.close()


class Complaints(list[str]):
    """What the browser complained of: console errors, violations of the security policy, failed scripts."""


@pytest.fixture
def complaints() -> Complaints:
    """Empty at the start of a test; `page` and `watched` write to it."""
    return Complaints()


def opened(context: BrowserContext) -> Page:
    """A new page that waits for whatever is asked of it."""
    context.set_default_timeout(PATIENCE_MS)
    return context.new_page()


def watched(context: BrowserContext, complaints: Complaints) -> Page:
    """A new page whose complaints are kept."""

    def failed(request: Request) -> None:
        # whoever goes on to the next page leaves behind what the last one was still loading, or listening to
        if request.failure != "net::ERR_ABORTED":
            complaints.append(f"failed: {request.url} {request.failure}")

    page = opened(context)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", failed)
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return page


@pytest.fixture
def page(browser: Browser, complaints: Complaints) -> Iterator[Page]:
    """A page on a desktop screen, light."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield watched(context, complaints)
    context.close()
