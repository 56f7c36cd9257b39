"""The rule of the log for what a tool's server tells of a call whose result is missing."""

from tests.checker.values import BrokenLog, Folded
from turnkeeper.pb.v1 import event_pb2


def tool_reconciled(folded: Folded, event: event_pb2.Event) -> None:
    """Lets a call start again that did not start. Raises BrokenLog unless the answer is about a STARTED call."""
    call, state = folded.calls[event.tool_reconciled.tool_call_id], event.tool_reconciled.state
    if event.turn_id != folded.active or call.state != "STARTED" or not call.irreversible:
        raise BrokenLog(f"a {call.tool} that was {call.state} was reconciled ({event.sequence})")
    if state == event_pb2.RECONCILED_STATE_NOT_STARTED:
        call.state = "READY"
