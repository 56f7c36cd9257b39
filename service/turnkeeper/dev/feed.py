"""The live feed of `turnkeeper dev`: a line for each turn and for each decision, from what was stored."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from turnkeeper.dev.printer import Printer
from turnkeeper.dev.screen_log import ScreenLog, clock
from turnkeeper.domain import approval_events as approvals
from turnkeeper.domain import event as events
from turnkeeper.domain.approval import ApprovalDecision, ApprovalKind
from turnkeeper.domain.event import AttemptOutcome, NewEvent
from turnkeeper.domain.tool import ToolOutcome, model_text
from turnkeeper.domain.tool_events import ClientToolRequested, ToolReturned
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.step_log import log_steps
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.terminal.console import Part

SHORT_ID: Final = 6
"""Characters of an id that a command takes."""
KNOWN: Final = 1_000
"""Sessions whose agents are remembered."""
LONGEST: Final = 200
"""Characters of what a tool, a model or a caller wrote, in a line."""
_DECIDED: Final = {
    ApprovalDecision.APPROVE: ("approved", "green"),
    ApprovalDecision.REJECT: ("rejected", "red"),
    ApprovalDecision.RETRY: ("may run again, decided", "green"),
    ApprovalDecision.MARK_DONE: ("was done, decided", "green"),
    ApprovalDecision.GIVE_UP: ("given up", "red"),
}
_QUIET: Final = (ToolOutcome.OK, ToolOutcome.REJECTED, ToolOutcome.EXPIRED, ToolOutcome.CANCELLED)
"""Outcomes without a line of their own: another line has told it, or all went well."""
logger = logging.getLogger(__name__)


class LiveFeed:
    """Turns what is stored into lines."""

    def __init__(self, printer: Printer, log: ScreenLog, command: Callable[[str], str]) -> None:
        """`command` makes the text of a command that works in the reader's shell. A failed tool that `log` has shown
        has no second line."""
        self._printer = printer
        self._log = log
        self._command = command
        self._agents = OrderedDict[str, str]()

    def observe(self, changeset: Changeset, committed: Committed) -> None:
        """Prints the lines of a stored changeset. Raises nothing."""
        log_steps(changeset, committed)
        try:
            self._remember(changeset)
            for event in changeset.events:
                agent = self._agents.get(changeset.session_id, "")
                for line in self._lines(event, changeset):
                    self._printer.show(
                        *(clock(event.at.timestamp()), " ", (f"{agent:<6}", "bold cyan"), " ", *line.parts),
                        command=line.command,
                    )
        except Exception:  # the turn goes on, whatever is wrong with a line
            logger.exception("a line of the feed could not be made")

    def _remember(self, changeset: Changeset) -> None:
        """Remembers the session's agent: not every changeset has it."""
        names = [event.payload.agent for event in changeset.events if isinstance(event.payload, events.SessionCreated)]
        names += [turn.agent for turn in (*changeset.new_turns, *changeset.turns)]
        if names:
            self._agents[changeset.session_id] = names[-1]
            self._agents.move_to_end(changeset.session_id)
        if len(self._agents) > KNOWN:
            self._agents.popitem(last=False)

    def _lines(self, event: NewEvent, changeset: Changeset) -> Iterator["_FeedLine"]:
        """Yields the lines of one event: none for most."""
        match event.payload:
            case approvals.ApprovalRequested(kind=kind, tool=tool, approval_id=approval_id):
                what = "waits for you" if kind is ApprovalKind.TOOL_CALL else "may have run: decide what became of it"
                approve = self._command(f"approve {_short(approval_id)}")
                yield _FeedLine(f"{tool} {what}", command=(approve, "bold yellow"))
            case approvals.ApprovalDecided(approval_id=approval_id, decision=decision, decided_by=by, reason=reason):
                word, style = _DECIDED[decision]
                yield _FeedLine(f"{_tool_of(changeset, approval_id)} ", (word, style), f" by {by}{_because(reason)}")
            case approvals.ApprovalExpired(approval_id=approval_id):
                yield _FeedLine(
                    f"{_tool_of(changeset, approval_id)} ", ("expired", "red"), ": it was not decided in time"
                )
            case ToolReturned(tool=tool, outcome=outcome, result_json=result) as returned if outcome not in _QUIET:
                if not self._log.has_shown(returned.tool_call_id):
                    yield _FeedLine(f"{tool:.64} ", (outcome.value, "red"), f" {_one_line(model_text(result))}")
            case ClientToolRequested(tool=tool):
                yield _FeedLine(f"{tool} waits for the client, which runs it")
            case events.AttemptFailed(error=error, outcome=AttemptOutcome.RETRYING, retry_delay=delay):
                again = "" if delay is None else f"; again in {delay.total_seconds():.1f} s"
                yield _FeedLine(("model call failed", "red"), f" {error.code.name}: {error.message}{again}")
            case _:
                yield from self._end(event, changeset)

    def _end(self, event: NewEvent, changeset: Changeset) -> Iterator["_FeedLine"]:
        """Yields the line of a turn that ended, if the event is one's end."""
        turn = next((turn for turn in (*changeset.turns, *changeset.new_turns) if turn.id == event.turn_id), None)
        show = (self._command(f"show {_short(changeset.session_id)}"), "dim")
        match event.payload:
            case events.TurnCompleted(usage=usage):
                yield _FeedLine(("answered", "green"), f"{_took(event, turn)}{_calls(usage.tool_calls)}", command=show)
            case events.TurnFailed(error=error):
                yield _FeedLine(("turn failed", "red"), f" {error.code.name}: {error.message}", command=show)
            case events.TurnCancelled(principal=principal):
                yield _FeedLine("turn cancelled", f" by {principal}" if principal else "", command=show)


class _FeedLine:
    """A line of the feed without its clock: what happened, and the command that goes on from there."""

    def __init__(self, *parts: Part, command: Part = "") -> None:
        self.parts = parts
        self.command = command


def _tool_of(changeset: Changeset, approval_id: str) -> str:
    tools = [change.approval.tool for change in changeset.approvals if change.approval.id == approval_id]
    return tools[0] if tools else "an approval"


def _took(event: NewEvent, turn: Turn | None) -> str:
    return "" if turn is None else f" in {max(0.0, (event.at - turn.create_time).total_seconds()):.1f} s"


def _calls(count: int) -> str:
    return f", {count} call{'s' if count > 1 else ''}" if count else ""


def _because(reason: str) -> str:
    return f": {_one_line(reason)}" if reason else ""


def _short(identifier: str) -> str:
    return identifier[-SHORT_ID:]


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
