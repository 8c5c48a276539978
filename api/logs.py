"""One line a request and one for every mistake of the service, as text or JSON, and never a key.

`log_to` gives the logger `safe_sail.api` a handler of its own. Whatever is rendered, a traceback too, passes through
`without_keys` at the very end, so a key that stands in an address, a header or an exception's text is cut on its way.
"""

import logging
import re
import sys
from typing import Any, Literal, TextIO

import structlog

LogForm = Literal["off", "text", "json"]
LOGGER = "safe_sail.api"
_KEY = re.compile(r"(sail(?:_|%5f))([0-9a-f]{12})(?:_|%5f)[A-Za-z0-9_%-]{8,}", re.IGNORECASE)
_SHARED: list[Any] = [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.stdlib.add_log_level]


def without_keys(text: str) -> str:
    """The text with the secret of every API key in it cut out; the prefix stays, by which a key can be revoked."""
    return _KEY.sub(r"\1\2_[secret]", text)


class _Formatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        """The record as a line without keys."""
        return without_keys(super().format(record))


def log_to(form: LogForm, stream: TextIO | None = None) -> logging.Handler:
    """The handler that writes the service's log in this form, to standard error if nothing else is given.

    With `off` mistakes of the service are still written, as text, and requests are not.
    """
    if form == "json":
        render: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
        last = [structlog.processors.dict_tracebacks, render]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if form == "off" else logging.INFO)
    return handler
