"""Turns as this replica's own changesets left them, so that a waiting caller need not read its turn after each event.

A cached turn counts only while no other replica has written to the session after it. It counts only for a caller whose
wait began before the changeset was sent: to a later caller, another replica may have answered with something newer.
"""

from dataclasses import dataclass

from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Changeset, Committed

CACHED_TURNS = 16
"""Turns of one session at most: the ones that callers wait for, and a few more."""


@dataclass(slots=True)
class CachedTurn:
    """A turn as a committed changeset of this replica left it."""

    turn: Turn
    last_seq: int
    """No event of the turn has a higher number."""
    sent_at: float
    """When the changeset was first sent, by `time.monotonic`."""


class TurnCache:
    """The cached turns of one session. It exists while a caller waits for one of them."""

    __slots__ = ("_through", "_turns", "waiters")

    def __init__(self) -> None:
        """Makes an empty cache without waiters."""
        self.waiters = 0
        """Callers that wait for a turn of the session."""
        self._turns: dict[str, CachedTurn] = {}
        self._through = 0
        """The number of the last event of the newest changeset that was added."""

    def add(self, changeset: Changeset, committed: Committed, *, sent_at: float) -> None:
        """Adds the turns of a changeset of this replica that is committed."""
        if committed.last_seq < self._through:
            return  # a later changeset was confirmed first
        if changeset.last_seq != self._through:
            self._turns.clear()  # another replica wrote in between
        self._through = committed.last_seq
        for turn in (*changeset.new_turns, *changeset.turns):
            self._turns.pop(turn.id, None)
            self._turns[turn.id] = CachedTurn(turn, committed.last_seq, sent_at)
        for event in committed.events:
            if event.turn_id in self._turns:
                self._turns[event.turn_id].last_seq = event.sequence
        while len(self._turns) > CACHED_TURNS:
            del self._turns[next(iter(self._turns))]

    def clear(self) -> None:
        """Forgets every turn: the log from which they are known is no longer there."""
        self._turns.clear()
        self._through = 0

    def get(self, turn_id: str, *, since: float, until: int) -> CachedTurn | None:
        """Returns the turn for a wait that began at `since`, by `time.monotonic`; None if it must be read.

        `until` is the number of the session's last known event, on whichever replica it was written.
        """
        cached = self._turns.get(turn_id)
        return cached if cached is not None and cached.sent_at >= since and until <= self._through else None
