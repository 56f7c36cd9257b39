"""A label's value is an enum's or a configured name. What looks like an id becomes `_OTHER`."""

import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Protocol, TypeAlias

from opentelemetry.context import Context, get_current
from opentelemetry.util.types import AttributeValue

OTHER = "_OTHER"
SERVER_ADDRESS = "server.address"
"""The one label that is not checked: a host of the configuration may look like an id."""
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The gRPC statuses that the conventions call a server's error; the others are the caller's."""

Value: TypeAlias = str | int | None
LabelSet: TypeAlias = Mapping[str, AttributeValue]

_MOST_SETS = 2000
"""Sets of labels that one instrument keeps ready. The SDK counts what is beyond its own limit as one overflow set."""
_BATCH = 64
"""Amounts that are recorded together."""
_NAME = re.compile(r"[A-Za-z0-9_.:/@~+-]{1,80}")
"""Also a path: a model's server may take the name of its model's file."""
_ID = re.compile(
    r"(?<![A-Za-z0-9])[0-7][0-9a-hjkmnp-tv-z]{25}(?![A-Za-z0-9])"  # a ULID
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # a UUID
    r"|(?<![A-Za-z0-9])[0-9a-f]{16,}(?![A-Za-z0-9])",  # a hash, a trace id, an ObjectId, a number
    re.IGNORECASE,
)


class Record(Protocol):
    """`Counter.add` or `Histogram.record` of OpenTelemetry."""

    def __call__(self, amount: float, /, attributes: LabelSet, context: Context) -> None: ...


class PendingAmounts:
    """Amounts that wait to be recorded.

    A single record runs the SDK's code from cold caches and takes three times as long as one of many. Each amount keeps
    the context in which it was measured, for its exemplar.
    """

    def __init__(self, *, counting: bool = True) -> None:
        """Without `counting`, metrics go nowhere, and no amount is kept."""
        self.counting = counting
        self._waiting: deque[tuple[Record, float, LabelSet, Context]] = deque()

    def add(self, record: Record, amount: float, labels: LabelSet) -> None:
        """Records the amount with the next flush, at the latest the one for `_BATCH` amounts."""
        self._waiting.append((record, amount, labels, get_current()))
        if len(self._waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Records all that waits. May be called on any thread."""
        with suppress(IndexError):
            while True:
                record, amount, labels, context = self._waiting.popleft()
                record(amount, labels, context)


class Labelled:
    """Records amounts under sets of labels. A set is made and checked once; later records only look it up."""

    __slots__ = ("_batch", "_fixed", "_names", "_record", "_sets")

    def __init__(self, record: Record, *names: str, fixed: LabelSet, batch: PendingAmounts) -> None:
        """`names` are the labels whose values vary; `fixed` is part of every set."""
        self._record = record
        self._batch = batch
        self._names = names
        self._fixed = fixed
        self._sets: dict[tuple[Value, ...], LabelSet] = {}

    def __call__(self, amount: float, *values: Value) -> None:
        """Records `amount`. `values` are those of the names, in their order; None leaves a label out."""
        if not self._batch.counting:
            return
        labels = self._sets.get(values)
        self._batch.add(self._record, amount, self._new_set(values) if labels is None else labels)

    def _new_set(self, values: tuple[Value, ...]) -> LabelSet:
        labels = dict(self._fixed)
        for name, value in zip(self._names, values, strict=True):
            if value is not None:
                checked = isinstance(value, str) and name != SERVER_ADDRESS
                labels[name] = label(str(value)) if checked else value
        if len(self._sets) < _MOST_SETS:
            self._sets[values] = labels
        return labels


@lru_cache(maxsize=1024)
def label(value: str) -> str:
    """Returns `value` as a label, or `_OTHER` for an id, a sentence or an empty text. Cheap for values seen before."""
    if not _NAME.fullmatch(value) or _ID.search(value):
        return OTHER
    return str(value)
