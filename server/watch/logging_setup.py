"""Log format and level, set once for the process; JSON lines or text, never a prompt."""

import logging
import sys
import time
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def log_form(form: str | None, stream: TextIO = sys.stderr) -> str:
    """The form of log lines: as it was set, else console on a terminal and json elsewhere."""
    if form is not None:
        return form
    return "console" if stream.isatty() else "json"


def set_up_logging(*, form: str | None, level: str, stream: TextIO = sys.stderr) -> None:
    """Send every logger of the process to `stream`.

    form: json or console; None is console on a terminal, else json
    """
    renderer: Processor
    if log_form(form, stream) == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)
    else:
        renderer = structlog.processors.JSONRenderer()
    shared: list[Processor] = [
        _add_time,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _drop_colour_message,
            _escape_controls,
            renderer,
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # What it says of each connection stands in our own request line.
    logging.getLogger("uvicorn.access").disabled = True


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord | None = event.get("_record")
    seconds = time.time() if record is None else record.created
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    event["ts"] = f"{whole}.{int(seconds % 1 * 1000):03d}Z"
    return event


def _drop_colour_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)
    return event


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make control characters visible, so that nobody can write log lines of their own."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception" and not value.isprintable():
            event[name] = value.encode("unicode_escape").decode("ascii")
    return event
