"""Turns as this replica's own steps left them: whoever waits for one need not read it after each event.

A value counts only while nobody else has written after it, and only for whoever began to wait before its step was sent:
to others, who come later, another replica may have answered something newer by then.
"""

from dataclasses import dataclass

from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Changeset, Committed

KEPT = 16
"""Turns of one session: those that are waited for, and few more."""


@dataclass(slots=True)
class CachedTurn:
    """`last`: no event of it has a higher number. `sent_at`: when its step was first sent, by `time.monotonic`."""

    turn: Turn
    last: int
    sent_at: float


class TurnCache:
    """Of one session, while somebody waits for one of its turns."""

    __slots__ = ("_through", "_turns", "watchers")

    def __init__(self) -> None:
        self.watchers = 0
        self._turns: dict[str, CachedTurn] = {}
        self._through = 0

    def learn(self, step: Changeset, committed: Committed, *, sent_at: float) -> None:
        """A step of ours is confirmed."""
        if committed.last_seq < self._through:
            return  # overtaken by the news of the next one
        if step.last_seq != self._through:
            self._turns.clear()  # others wrote in between
        self._through = committed.last_seq
        for turn in (*step.new_turns, *step.turns):
            self._turns.pop(turn.id, None)
            self._turns[turn.id] = CachedTurn(turn, committed.last_seq, sent_at)
        for event in committed.events:
            if event.turn_id in self._turns:
                self._turns[event.turn_id].last = event.sequence
        while len(self._turns) > KEPT:
            del self._turns[next(iter(self._turns))]

    def get(self, turn_id: str, *, since: float, until: int) -> CachedTurn | None:
        """`until`: the last number that was heard of, whoever wrote it."""
        known = self._turns.get(turn_id)
        return known if known is not None and known.sent_at >= since and until <= self._through else None
