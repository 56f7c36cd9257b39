"""Results of calls whose tools gave none in time, or were never started."""

from datetime import timedelta

from turnkeeper.domain.tool import Call, ToolOutcome, ToolResult
from turnkeeper.tools.results import error_text
from turnkeeper.tools.toolbox import Finished


def timed_out(call: Call, timeout: timedelta, *, most_starts: int = 1) -> Finished:
    """Returns the result of a call whose tool did not finish in time."""
    message = f"The tool did not finish in {timeout.total_seconds():g} s; it may have taken effect."
    result = ToolResult(outcome=ToolOutcome.TIMED_OUT, result_json=error_text(message))
    return Finished(call_id=call.id, result=result, attempt=call.attempt, duration=timeout, most_starts=most_starts)


def without_room(call: Call, waited: timedelta) -> Finished:
    """Returns the result of a call that did not run, because as many as may be ran all the time."""
    message = "Too many calls of this tool run now, so this one did not start; try again later."
    result = ToolResult(outcome=ToolOutcome.FAILED, result_json=error_text(message))
    return Finished(call_id=call.id, result=result, attempt=call.attempt, duration=waited)
