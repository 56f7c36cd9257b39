"""The places that one owner's calls have or wait for, where only so many calls of a tool run at the same time.

A call waits before its start is stored: what waited when its owner is lost has certainly not run.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

from turnkeeper.domain.tool import Call, CallState
from turnkeeper.tools.call_places import CallPlaces
from turnkeeper.tools.no_result import without_room
from turnkeeper.tools.toolbox import Finished, Toolbox


class CallRooms:
    """The places of one owner's READY calls."""

    def __init__(self, toolbox: Toolbox, *, record: Callable[[Call, Finished], None]) -> None:
        """`record` is called for each call that got no place in its time."""
        self._toolbox = toolbox
        self._record = record
        self._places: dict[str, CallPlaces] = {}
        """By call: what it has taken a place of, and has not started in."""
        self._waits: dict[str, asyncio.Task[Finished | None]] = {}
        """By call: ends with a place, or with the result of a call that got none."""
        self._offered: set[str] = set()
        """Calls that may start by the decision that is being stored."""

    @property
    def waiting(self) -> frozenset[str]:
        """Returns the ids of the calls that wait for a place, or whose results were not taken yet."""
        return frozenset(call_id for call_id, wait in self._waits.items() if not _has_place(wait))

    @property
    def placed(self) -> frozenset[str]:
        """Returns the ids of the calls that have a place, and have not started."""
        return frozenset(self._places)

    @property
    def tasks(self) -> set[asyncio.Task[Finished | None]]:
        """Returns a task for each call that waits."""
        return set(self._waits.values())

    def take(self, call: Call, *, timeout: timedelta) -> bool:
        """Returns True if the call may start: it has a place, or needs none. Otherwise it waits, for `timeout` at most.

        The caller stores its decision, starts the calls that may, and then calls `release_unused`. It may decide again.
        """
        room = self._toolbox.room_of(call.tool)
        wait = self._waits.get(call.id)
        if wait is not None and not _has_place(wait):
            return False
        self._waits.pop(call.id, None)
        if call.id not in self._places:
            if room is None:
                return True
            if not room.take():
                self._waits[call.id] = asyncio.create_task(self._wait(call, room, timeout))
                return False
            self._places[call.id] = room
        self._offered.add(call.id)
        return True

    def take_results(self) -> list[Finished]:
        """Returns the results of the calls that got no place in their time, each once."""
        ended = [(call_id, wait.result()) for call_id, wait in self._waits.items() if wait.done()]
        results = [(call_id, finished) for call_id, finished in ended if finished is not None]
        for call_id, _ in results:
            del self._waits[call_id]
        return [finished for _, finished in results]

    def place_of(self, call: Call) -> CallPlaces | None:
        """Returns what a call that starts has a place of, for the caller to give back; None if it needs none."""
        return self._places.pop(call.id, None)

    def release_unused(self, calls: Iterable[Call] = ()) -> None:
        """Gives back the places of calls that could have started and did not, and of those in `calls` that are closed
        or wait for a person by now.
        """
        changed = set[str]()
        if self._places or self._waits:
            changed = {call.id for call in calls if call.state is not CallState.READY}
        for call_id in changed:
            if wait := self._waits.pop(call_id, None):
                wait.cancel()
        for call_id in (self._offered | changed) & self._places.keys():
            self._places.pop(call_id).give_back()
        self._offered.clear()

    def stop(self) -> None:
        """Gives up all places, and all waits for them."""
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()
        self._offered |= self._places.keys()
        self.release_unused()

    async def _wait(self, call: Call, room: CallPlaces, timeout: timedelta) -> Finished | None:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await room.wait()
        except TimeoutError:
            finished = without_room(call, timeout)
            self._record(call, finished)
            return finished
        self._places[call.id] = room
        return None


def _has_place(wait: asyncio.Task[Finished | None]) -> bool:
    return wait.done() and wait.result() is None
