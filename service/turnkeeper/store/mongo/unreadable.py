"""Documents that this version cannot read: counted, and logged once for each collection and schema.

A rolling change lets a newer version store what this one does not know. No such document may stop what is done for all
others: a list is returned without it, a sweep passes it over. A caller who names that very document gets
ServiceUnavailable, and comes again to a newer replica.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

COLLECTIONS: Final[Mapping[str, str]] = {
    "Session": "sessions",
    "Cancel": "heads",
    "Head": "heads",
    "Turn": "turns",
    "Call": "tool_calls",
    "Approval": "approvals",
    "RequestRecord": "requests",
    "Agent": "agents",
    "PreviewChunk": "partials",
}
"""The collection of each dataclass that is stored as a document."""
_OTHER: Final = "other"
_HIGHEST: Final = 999
"""Schemas above it are counted together, so that what is stored cannot make labels without end."""

logger = logging.getLogger(__name__)


class RecordUnreadable(Protocol):
    """`Metrics.document_unreadable`, or a function like it."""

    def __call__(self, collection: str, *, schema: str) -> None: ...


class UnreadableDocument(Exception):
    """A document that only a newer version can read."""

    def __init__(self, kind: str, *, schema: object) -> None:
        """`kind` names the dataclass that it was to become. `schema` is that of its document."""
        super().__init__(f"a document for {kind} cannot be read")
        self.collection = COLLECTIONS.get(kind, _OTHER)
        is_number = isinstance(schema, int) and 0 <= schema <= _HIGHEST
        self.schema = str(schema) if is_number else _OTHER


class Unreadable:
    """Records unreadable documents."""

    def __init__(self, record: RecordUnreadable | None = None) -> None:
        """`record` counts each time that one was met."""
        self._record = record
        self._logged: set[tuple[str, str]] = set()

    def note(self, error: UnreadableDocument) -> None:
        """Counts a document; logs the first of its collection and schema."""
        if self._record is not None:
            self._record(error.collection, schema=error.schema)
        if (error.collection, error.schema) not in self._logged:
            self._logged.add((error.collection, error.schema))
            logger.warning(
                "documents of %s with schema %s need a newer version: this replica passes them over and counts them in "
                "turnkeeper.documents.unreadable",
                *(error.collection, error.schema),
            )

    def passed_over(self, documents: Iterable[Mapping[str, Any]], read: Callable[[Any], T]) -> list[T]:
        """Returns what `read` makes of the documents, without those that cannot be read."""
        values: list[T] = []
        for document in documents:
            try:
                values.append(read(document))
            except UnreadableDocument as error:
                self.note(error)
        return values
