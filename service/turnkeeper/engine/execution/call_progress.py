"""Shows a session's watchers how far the tools of its owner are."""

from collections.abc import Callable

from turnkeeper.domain.tool import Call
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.tool_progress import ProgressLine


class WatchedProgress:
    """What one owner shows to the watchers of its session."""

    def __init__(self, feed: Feed, *, lease_held: Callable[[], bool] = lambda: True) -> None:
        """`lease_held` returns False once another owner may run the calls: then nothing is shown."""
        self._feed = feed
        self._lease_held = lease_held

    def show(self, call: Call, message: str) -> None:
        """Shows a line of a call that runs."""
        if self._lease_held():
            line = ProgressLine(turn_id=call.turn_id, attempt=call.attempt, tool_call_id=call.id, message=message)
            self._feed.show_progress(line)

    def end(self, call: Call) -> None:
        """Forgets the line of a call that has ended, or whose time is over."""
        if self._feed.progress is not None:
            self._feed.progress.end(call.id)
