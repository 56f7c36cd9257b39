"""Finds the lapsed leases whose owner was lost with its process: evidence that a turn kills whatever runs it.

A lease also lapses because the database is slow, or because its owner is paused. Such an owner is alive. Therefore a
lapse counts only if the owner wrote under its fence, and if its process's heartbeat stopped within a lease of the last
renewal. If it stopped earlier, the owner renewed its lease without it, and was alive. An owner whose heartbeat moves
again later was paused, and does not count any more. A process that ends in order removes its document: it was not lost.

A head has the evidence in two fields. `writer` is the process that wrote last as the owner, and its fence. `lost` are
the owners that were lost since the turn's last progress, each with its turn: an older version changes neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pymongo.read_concern import ReadConcern

from turnkeeper.store.mongo.client import Connection, Document
from turnkeeper.store.mongo.transactions.orphans import STARTING_MS

MOST_KEPT: Final = 8
"""Lost owners that a head keeps: the latest ones."""
_LATEST: Final = ReadConcern("local")
"""A heartbeat shows that a process is alive also before a majority has it."""


@dataclass(frozen=True, slots=True)
class LostOwners:
    """Judges the owners of lapsed leases, as one replica."""

    connection: Connection
    process: str
    """This process: an owner in it is alive."""

    async def after_lapse(self, heads: Sequence[Document]) -> list[list[Document]]:
        """Returns the new `lost` of each of these heads, whose leases have lapsed."""
        replicas = await self._replicas(*heads)
        return [self._after_lapse(head, replicas) for head in heads]

    async def count(self, head: Document) -> int:
        """Returns how many owners of the head's active turn were lost since its last progress."""
        return len(_still_lost(head, await self._replicas(head))) if head.get("lost") else 0

    def _after_lapse(self, head: Document, replicas: Mapping[str, Document]) -> list[Document]:
        lost = _still_lost(head, replicas)
        writer = head.get("writer") or {}
        if writer.get("fence") != head["fence"] or writer["process"] == self.process:
            return lost
        replica = replicas.get(head["owner"])
        if replica is None:
            return lost
        owner = {"turn_id": head["active_turn"], "owner": head["owner"], "process": writer["process"], "at": None}
        if replica.get("process") == writer["process"]:
            if not _stopped_with_the_lease(replica, lease_until=head["lease_until"]):
                return lost
            owner["at"] = replica["at"]
        return [*lost, owner][-MOST_KEPT:]

    async def _replicas(self, *heads: Document) -> Mapping[str, Document]:
        """Returns the documents of all replicas that owned these heads' turns, by name."""
        names = {head["owner"] for head in heads}
        names |= {lost["owner"] for head in heads for lost in head.get("lost") or ()}
        if not names:
            return {}
        replicas = self.connection.replicas.with_options(read_concern=_LATEST)
        documents = replicas.find({"_id": {"$in": sorted(names)}}, {"at": 1, "process": 1, "silent_after": 1})
        return {document["_id"]: document async for document in documents}


def _still_lost(head: Document, replicas: Mapping[str, Document]) -> list[Document]:
    """Returns the lost owners of the active turn without those whose heartbeat has moved since."""
    lost = [owner for owner in head.get("lost") or () if owner["turn_id"] == head["active_turn"]]
    return [owner for owner in lost if not _has_moved(owner, replicas.get(owner["owner"]))]


def _has_moved(owner: Document, replica: Document | None) -> bool:
    """Returns True if the owner's process was alive after it counted as lost: it published a heartbeat, or ended.

    Another process of the same name is none: that one was started again.
    """
    if replica is None:
        return True
    if replica.get("process") != owner["process"]:
        return False
    return owner["at"] is None or bool(replica["at"] > owner["at"])


def _stopped_with_the_lease(replica: Document, *, lease_until: datetime) -> bool:
    """Returns True if the heartbeat stopped when the lease's last renewal did: at most one lease before it.

    Heartbeats come four times a lease, as renewals do: so a process that is alive has one in the lease's last half.
    A process that has only taken its name has not published one yet.
    """
    lease = timedelta(milliseconds=replica.get("silent_after", 0))
    earliest = lease_until - 2 * (lease or timedelta(milliseconds=STARTING_MS))
    return bool(earliest <= replica["at"] <= lease_until - lease / 2)
