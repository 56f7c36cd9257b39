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


class Quiet(logging.Filter):
    """Lets each sentence of the exporters through once per `every`, from `begin` to `end`; after `mute`, none."""

    def __init__(self, *, every: timedelta, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every = every.total_seconds()
        self._clock = clock
        self._said: dict[str, float] = {}
        self._muted = False

    def begin(self) -> None:
        for name in _NOISY:
            logging.getLogger(name).addFilter(self)

    def mute(self) -> None:
        """While they close they only say that they close."""
        self._muted = True

    def end(self) -> None:
        for name in _NOISY:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        now, sentence = self._clock(), str(record.msg)
        if self._muted or now - self._said.get(sentence, -self._every) < self._every:
            return False
        self._said[sentence] = now
        record.exc_info = record.exc_text = None  # a stack of the SDK's threads helps nobody
        return True
