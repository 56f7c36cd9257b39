"""The log's lines on the screen of `turnkeeper dev`: a clock, the level if it matters, and the message."""

import logging
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from turnkeeper.dev.printer import Printer
from turnkeeper.telemetry.logs import JsonLines, worth_a_line
from turnkeeper.telemetry.redact import Redactor

CALLS: Final = 1_000
"""Tool calls with a line of the log that are remembered."""
STYLES: Final = {logging.DEBUG: "dim", logging.INFO: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}


class ScreenLog(logging.Handler):
    """Prints records of the service, and those of libraries from WARNING on."""

    def __init__(self, printer: Printer, *, level: str, secrets: Iterable[str]) -> None:
        super().__init__(level)
        self._printer = printer
        self._calls = deque[str](maxlen=CALLS)
        self.addFilter(worth_a_line)
        self.setFormatter(_Lines("", Redactor(secrets)))

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record. Raises nothing."""
        try:
            self._printer.show(clock(record.created), " ", (self.format(record), STYLES.get(record.levelno, "")))
            if call := getattr(record, "tool_call", ""):
                self._calls.append(call)
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)

    def has_shown(self, tool_call_id: str) -> bool:
        """Returns True if a line about this tool call was printed."""
        return tool_call_id in self._calls


def clock(seconds: float) -> str:
    """Returns the time of day here."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%H:%M:%S}"


class _Lines(JsonLines):
    def format(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        about = [f"{name} {str(fields[name])[-6:]}" for name in ("session", "attempt") if name in fields]
        stack = fields.get("stack", [])
        assert isinstance(stack, list)
        where = f" ({', '.join(about)})" if about and record.levelno < logging.WARNING else ""
        names = f" [{fields['error']}]" if "error" in fields else ""
        return "\n  ".join([f"{fields['message']}{names}{where}", *stack])
