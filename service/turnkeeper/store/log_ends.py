"""What a store tells of the ends of logs; a part of its contract.

A database may be restored to an older state while replicas run. What they keep of a log then names events that are
gone, and other events get the same numbers. The end of a log names its history, so that both are noticed.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import LogEnd


class LogEnds(Protocol):
    """The ends of logs."""

    async def ends(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, LogEnd]:
        """Returns the end of the log of each session that exists. Sends one query."""
        ...

    async def holds(self, key: SessionKey, *ends: LogEnd) -> bool:
        """Returns True if the log has these ends, which were read or stored before.

        Returns False only if it is certain that it has another history, or is shorter: the database was restored to an
        older state. Of each `changeset_id` the last characters are enough. Events that are trimmed are not compared.
        Raises ServiceUnavailable also if the log seems shorter, and the database cannot confirm it.
        """
        ...
