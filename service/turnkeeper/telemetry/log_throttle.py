"""Keeps an exporter that fails over and over from filling the log."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

_NOISY = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.trace.export",
)


class LogThrottle(logging.Filter):
    """Lets each message of the exporters through once per `every`, from `begin` to `end`; after `mute`, none."""

    def __init__(self, *, every: timedelta, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every = every.total_seconds()
        self._clock = clock
        self._logged_at: dict[str, float] = {}
        self._muted = False

    def begin(self) -> None:
        """Adds the filter to the exporters' loggers."""
        for name in _NOISY:
            logging.getLogger(name).addFilter(self)

    def mute(self) -> None:
        """Drops every message from now on: exporters that close only report that they close."""
        self._muted = True

    def end(self) -> None:
        """Removes the filter from the exporters' loggers."""
        for name in _NOISY:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns False for a message that is repeated too soon. Takes the stack off: it is of the SDK's threads."""
        now, message = self._clock(), str(record.msg)
        if self._muted or now - self._logged_at.get(message, -self._every) < self._every:
            return False
        self._logged_at[message] = now
        record.exc_info = record.exc_text = None
        return True
