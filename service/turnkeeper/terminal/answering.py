"""Shows a turn while it runs: the model's text as it comes, each tool call in one line, and how the turn ended."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from turnkeeper.terminal.absence import absence
from turnkeeper.terminal.console import Output, Part, styled
from turnkeeper.terminal.markdown import Line, markdown_lines
from turnkeeper.terminal.names import in_one_line, seconds, word
from turnkeeper.terminal.painting import Painting
from turnkeeper_client import TextAssembler
from turnkeeper_client.pb.v1 import event_pb2
from turnkeeper_client.pb.v1.chat_pb2 import TurnState
from turnkeeper_client.pb.v1.event_pb2 import Event
from turnkeeper_client.pb.v1.message_pb2 import FinishReason

_CUT: Final = {FinishReason.FINISH_REASON_LENGTH: "the output limit cut the answer"}
ENDS: Final[Mapping[str, TurnState.ValueType]] = {
    "turn_completed": TurnState.TURN_STATE_COMPLETED,
    "turn_failed": TurnState.TURN_STATE_FAILED,
    "turn_cancelled": TurnState.TURN_STATE_CANCELLED,
}
"""The events that end a turn, and its state then."""


class Answering:
    """What the screen shows of one turn."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._painting = Painting(output)
        self._texts = TextAssembler()
        self._text = ""
        self._running: dict[str, str] = {}
        self._progress: dict[str, str] = {}
        """How far the calls are, by call."""
        self._is_stale = False
        self._absence = ""
        self.turn_id = ""
        self.last_sequence = 0
        self.state: TurnState.ValueType = TurnState.TURN_STATE_UNSPECIFIED
        """The state in which the turn has ended; unspecified before."""

    def begin(self) -> None:
        """Shows that the turn is under way."""
        self._paint()

    @property
    def stale_for(self) -> float | None:
        """Seconds until what the screen lacks is to be shown; None if it lacks nothing."""
        return self._painting.due_in if self._is_stale else None

    def show(self, event: Event | None, *, away: timedelta = timedelta()) -> None:
        """Takes an event, and shows what it changes. None: shows what the screen lacks.

        `away`: for how long the service has not answered.
        """
        if event is not None:
            self._take(event)
        self._absence = absence(away)
        self._is_stale = self._painting.due_in > 0
        if not self._is_stale:
            self._paint()

    def _take(self, event: Event) -> None:
        self.turn_id = event.turn_id or self.turn_id
        self.last_sequence = max(self.last_sequence, event.sequence)
        kind = event.WhichOneof("payload") or ""
        text = self._texts.add(event)
        if text is not None:
            self._text = text[:] if text.restart else self._text + text
        elif kind in ("attempt_failed", "attempt_superseded", "turn_retried"):
            self._text = ""
        self.state = ENDS.get(kind, self.state)
        if kind == "message_completed":
            self._finish_message(event.message_completed)
        elif kind in _LINES:
            self._line(*_LINES[kind](getattr(event, kind)))
        elif kind == "tool_called":
            self._running[event.tool_called.tool_call_id] = _call(event.tool_called)
        elif kind == "tool_progress":
            self._progress[event.tool_progress.tool_call_id] = in_one_line(event.tool_progress.message, longest=200)
        elif kind == "tool_returned":
            returned = event.tool_returned
            self._progress.pop(returned.tool_call_id, None)
            self._line(*_returned(returned, self._running.pop(returned.tool_call_id, returned.tool)))

    def rest(self) -> None:
        """Leaves on the screen what counts: the turn has ended or waits, or nothing more of it is shown."""
        self._painting.paint(self._lines(idle=False), finished=True)
        self._text = ""

    def note(self, text: str, style: str = "dim") -> None:
        """Shows a line of the program's own, above what still changes."""
        self._line((text, style))
        self._paint()

    def _finish_message(self, message: event_pb2.MessageCompleted) -> None:
        if self._text:
            self._painting.paint(markdown_lines(self._text, self._painting.console), finished=True)
        self._text = ""
        if message.finish_reason in _CUT:
            self._line((f"({_CUT[message.finish_reason]})", "red"))

    def _line(self, *parts: Any) -> None:
        """Shows one line that stays, above what still changes."""
        self._painting.paint(self._cut(*parts), finished=True)

    def _paint(self) -> None:
        self._painting.paint(self._lines(idle=True))

    def _lines(self, *, idle: bool) -> list[Line]:
        """Returns what still changes. `idle`: with a mark that the model is at work if there is nothing else."""
        lines = markdown_lines(self._text, self._painting.console) if self._text else []
        if not idle:
            return lines
        running = [] if self._text else [self._runs(call_id, call) for call_id, call in self._running.items()]
        waits = not self._text and not running and not self.state
        for text in [*running, *(["…"] if waits and not self._absence else [])]:
            lines += self._cut((text, "dim"))
        return [*lines, *self._cut((self._absence, "yellow"))] if self._absence else lines

    def _runs(self, call_id: str, call: str) -> str:
        """Returns the line of a call that runs: with how far it is, if its tool has told that."""
        progress = self._progress.get(call_id, "")
        return f"{in_one_line(call, longest=40)} … {progress}" if progress else f"{call} …"

    def _cut(self, *parts: Part) -> list[Line]:
        """Returns one line, cut at the width."""
        line = styled(*parts)
        line.truncate(self._painting.console.width, overflow="ellipsis")
        return self._painting.console.render_lines(line, pad=False)


def _call(event: event_pb2.ToolCalled) -> str:
    return f"{event.tool} {in_one_line(event.arguments_json, longest=200)}"


def _returned(event: event_pb2.ToolReturned, call: str) -> list[Any]:
    good = event.outcome == event_pb2.TOOL_OUTCOME_OK
    took = f" in {seconds(event.duration)}" if event.HasField("duration") else ""
    outcome = "" if good else f" {word(event_pb2.ToolOutcome, event.outcome)}"
    result = in_one_line(event.result_json, longest=60)
    shown = in_one_line(call, longest=60)
    return [("✓ " if good else "✗ ", "green" if good else "red"), shown, (f"{outcome}{took}", "dim"), f" → {result}"]


def _attempt_failed(event: event_pb2.AttemptFailed) -> list[Any]:
    again = f" Again in {seconds(event.retry_delay)}." if event.HasField("retry_delay") else ""
    return [("the model call failed: ", "red"), event.error.message, again]


_LINES: Final[Mapping[str, Any]] = {
    "approval_expired": lambda _: [("the approval expired; the call does not run", "red")],
    "attempt_failed": _attempt_failed,
    "attempt_superseded": lambda _: [("another server took the turn up", "dim")],
    "turn_queued": lambda event: [(f"queued behind {event.position} other turns", "dim")],
    "turn_failed": lambda event: [("the turn failed: ", "red"), event.error.message],
    "turn_cancelled": lambda _: [("cancelled", "yellow")],
}
"""The lines of events that have one."""
