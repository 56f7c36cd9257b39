"""What all classes read with that read sessions: consistent, and measured under a name."""

from collections.abc import Iterator
from contextlib import contextmanager

from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.consistent_reads import ConsistentReads, Read


class MeasuredReads:
    """Reads what a call needs."""

    _connection: Connection
    _consistent_reads: ConsistentReads

    @contextmanager
    def _reading(self, operation: str) -> Iterator[Read]:
        """Measures one read, and yields what gives each of its commands the collection. Limits all of them together."""
        connection = self._connection
        with connection.call(operation), connection.in_time(), self._consistent_reads.reading() as read:
            yield read
