"""What the server of a tool told of a call whose result is missing, and what follows from it."""

import json
from dataclasses import replace
from typing import Final

from turnkeeper.domain.tool import Call, CallState, ReconciledState, ToolOutcome, ToolResult
from turnkeeper.domain.tool_events import ToolReconciled
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.tools.contract import Reconciled
from turnkeeper.tools.toolbox import Finished

MOST_IDLE_STARTS: Final = 5
"""Starts of one call that were proven to have had no effect, after which it fails: its server takes none."""
_NEVER_TAKEN = f"The tool's server did not take the call in {MOST_IDLE_STARTS} starts; it did not run."


def record_reconciled(uow: UnitOfWork, finished: Finished, answer: Reconciled) -> Call | None:
    """Records the answer about a STARTED call, and what follows: its result, or that it may start again.

    Returns the call if a person must decide what became of it, otherwise None. So it does if the call is no longer the
    start that was in question. A call that a lost owner had started stays as it is if the answer tells nothing: its
    late result may still come.
    """
    call = next((call for call in uow.calls if call.id == finished.call_id), None)
    if call is None or call.state is not CallState.STARTED or call.attempt != finished.attempt:
        return None
    uow.append(
        ToolReconciled(
            tool_call_id=call.id,
            tool=call.tool,
            attempt=call.attempt,
            state=answer.state,
            took_effect=answer.took_effect,
        ),
        turn=uow.turn,
    )
    match answer.state:
        case ReconciledState.NOT_STARTED if call.idle_starts + 1 < MOST_IDLE_STARTS:
            uow.put_call(call.never_started())
        case ReconciledState.NOT_STARTED:
            result = ToolResult(outcome=ToolOutcome.FAILED, result_json=json.dumps({"error": _NEVER_TAKEN}))
            uow.close_call(call, result)
        case ReconciledState.DONE | ReconciledState.FAILED:
            outcome = ToolOutcome.OK if answer.state is ReconciledState.DONE else ToolOutcome.FAILED
            result = ToolResult(outcome=outcome, result_json=answer.result_json)
            uow.close_call(call, result, duration=finished.duration)
            uow.change_head(progress=True)
        case _:
            return call if call.fence == uow.snapshot.head.fence else None
    uow.put_turn(replace(uow.turn, lapses=0, update_time=uow.at))
    return None
