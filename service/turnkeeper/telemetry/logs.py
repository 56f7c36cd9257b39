"""Writes one line for each log record: JSON for machines, plain text on a terminal.

A line names what it is about (trace, caller, session, turn, fence, attempt, sequence, replica) and holds no content. An
exception is its class and its places in the code, its text is left out; secrets are hidden. Of a library's messages
the first line is written, from WARNING on.
"""

import asyncio
import json
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TextIO

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from turnkeeper.telemetry.redact import Redactor

ABOUT: Final = ("tenant", "principal", "x_request_id", "session", "turn", "fence", "attempt", "sequence", "replica")
"""The fields that `extra` and `about` may set. Anything else in `extra` is not written."""

_OURS = "turnkeeper"
logger = logging.getLogger(__name__)
_caller: ContextVar[tuple[weakref.ref[asyncio.Task[object]] | None, str, str, str]] = ContextVar(
    "turnkeeper_log_caller", default=(None, "", "", "")
)
_about: ContextVar[Mapping[str, str | int]] = ContextVar("turnkeeper_log_about", default=MappingProxyType({}))


@contextmanager
def about(*, session: str = "", turn: str = "", fence: int = 0, attempt: int = 0, sequence: int = 0) -> Iterator[None]:
    """Adds these fields to every line logged inside, in this task and those it starts. Empty or 0 adds nothing."""
    given: dict[str, str | int] = {
        "session": session,
        "turn": turn,
        "fence": fence,
        "attempt": attempt,
        "sequence": sequence,
    }
    token = _about.set({**_about.get(), **{name: value for name, value in given.items() if value}})
    try:
        yield
    finally:
        _about.reset(token)


def name_caller(tenant: str, principal: str, *, request_id: str = "") -> None:
    """Adds the caller, and the id that it gave its call, to every line that the current task logs from now on.

    Adds them to no line of the tasks that it starts.
    """
    if (task := asyncio.current_task()) is not None:
        _caller.set((weakref.ref(task), tenant, principal, request_id))


def _caller_fields() -> Mapping[str, str]:
    of_task, tenant, principal, request_id = _caller.get()
    try:
        is_its_own = of_task is not None and of_task() is asyncio.current_task()
    except RuntimeError:  # a thread without an event loop
        return {}
    if not is_its_own:
        return {}
    return {"tenant": tenant, "principal": principal, "x_request_id": request_id}


class Logs:
    """The logging that `start` has set up. `stop` restores what was set before."""

    def __init__(self, handler: logging.Handler, *, level: str) -> None:
        self._handler = handler
        self._before = logging.getLogger(_OURS).level, threading.excepthook, sys.unraisablehook
        logging.getLogger(_OURS).setLevel(level)
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)
        threading.excepthook = _log_end_of_thread
        sys.unraisablehook = _log_unraisable

    def stop(self) -> None:
        """Removes the handler, and restores what was set before `start`."""
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._handler)
        level, threading.excepthook, sys.unraisablehook = self._before
        logging.getLogger(_OURS).setLevel(level)
        self._handler.close()


def start(
    *,
    level: str = "INFO",
    replica: str = "",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    as_json: bool | None = None,
) -> Logs:
    """Writes log lines to `stream`, or to standard error, until `Logs.stop`.

    `replica` is a field of every line. `secrets` are redacted in every line. `as_json` None means JSON unless the
    stream is a terminal.
    """
    stream = stream or sys.stderr
    as_json = not stream.isatty() if as_json is None else as_json
    handler = _LogHandler(stream)
    handler.addFilter(worth_a_line)
    handler.setFormatter(JsonLines(replica, Redactor(secrets)) if as_json else PlainLines(replica, Redactor(secrets)))
    return Logs(handler, level=level)


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time, level, logger, message, then trace, ABOUT, error and stack if any."""

    def __init__(self, replica: str = "", redact: Redactor | None = None) -> None:
        super().__init__()
        self._replica = replica
        self._redact = redact or Redactor()

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self._fields(record))

    def _fields(self, record: logging.LogRecord) -> dict[str, str | int | list[str]]:
        at = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, str | int | list[str]] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._redact(_message(record)),
        }
        span = get_current_span().get_span_context()
        if span.is_valid:
            fields |= {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}
        known = {"replica": self._replica, **_caller_fields(), **_about.get(), **vars(record)}
        for name in ABOUT:
            if value := known.get(name):
                fields[name] = value if isinstance(value, int) else self._redact(str(value))
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            fields |= {"error": _names(error), "stack": _places(error)}
        return fields


class PlainLines(JsonLines):
    """Formats the same fields as plain text for a terminal: one line, then the stack."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        clock = str(fields["time"])[11:23]
        line = f"{clock} {record.levelname:<7} {record.name.removeprefix(_OURS + '.')}: {fields['message']}"
        named = [f"{name}={fields[name]}" for name in (*ABOUT, "trace_id", "error") if name in fields]
        places = fields.get("stack", [])
        assert isinstance(places, list)
        return "\n  ".join([_shown("  ".join([line, *named])), *map(_shown, places)])


class _LogHandler(logging.StreamHandler[TextIO]):
    """Writes the lines to a stream."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is the base class's
        """Reports on standard error that a line was lost; without its arguments, which the base class prints."""
        with suppress(OSError, ValueError):
            sys.stderr.write(f"a log record of {record.name} could not be written, and is lost\n")


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Logs the exception that ended a thread, a tool's perhaps. Python would print its text."""
    if not isinstance(ended.exc_value, SystemExit):
        logger.warning("a thread was ended by an exception; the server goes on", exc_info=ended.exc_value)


def _log_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Logs an exception that nothing could catch, that of a finalizer perhaps. Python would print its text."""
    logger.warning("an exception could not be raised where it happened; the server goes on", exc_info=raised.exc_value)


def worth_a_line(record: logging.LogRecord) -> bool:
    """Returns True for all records of the service, and for those of libraries from WARNING on."""
    return record.levelno >= logging.WARNING or _is_ours(record)


def _is_ours(record: logging.LogRecord) -> bool:
    """Returns True if the service logged the record, not a library."""
    return record.name == _OURS or record.name.startswith(f"{_OURS}.")


def _message(record: logging.LogRecord) -> str:
    """Returns the message. Of a library's message, returns the first line: the rest may hold an exception's text."""
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        message = str(record.msg)
    return message if _is_ours(record) else message.partition("\n")[0]


def _names(error: BaseException) -> str:
    """Returns the classes of the error and of its causes, the error first: `Outer < Inner`."""
    names, visited = [], set[int]()
    at: BaseException | None = error
    while at is not None and id(at) not in visited:
        visited.add(id(at))
        names.append(type(at).__name__)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return " < ".join(names)


def _places(error: BaseException) -> list[str]:
    """Returns `module:line function` of each frame, the outermost first: no text, no source, no path."""
    return [
        f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]


def _shown(text: str) -> str:
    """Returns `text` with control characters as escapes: no text can forge a line or move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
