"""Tools that outlive their owner's lease: each comes to its end, and what it returned is kept, never as an event."""

import asyncio
import logging
from dataclasses import dataclass

from turnkeeper.domain.tool import Call, CallState
from turnkeeper.engine.eventlog.writer import LeaseLost, LogWriter, Stored
from turnkeeper.engine.execution.tool_runner import DEAF_TIME
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import SessionStore
from turnkeeper.tools.toolbox import Finished

PAUSE = 1.0
"""Seconds between tries while the database does not answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanedCall:
    """A started call that must not run twice, and its tool at work; its owner is not sure of the lease any more."""

    call: Call
    tool: asyncio.Task[Finished]


async def see_off(left: OrphanedCall, *, store: SessionStore, log_writer: LogWriter) -> None:
    """Wait for the tool's end, and keep its result: as usual while the fence still holds, else as a late one.

    A cancellation ends the tool too, where it listens.
    """
    call = left.call
    try:
        finished = await left.tool
    finally:
        if not left.tool.done():
            left.tool.cancel()
            await asyncio.wait([left.tool], timeout=DEAF_TIME)
    where = {"session": call.session_id, "turn": call.turn_id}
    while True:
        try:
            if await _counts(call, finished, log_writer):
                return
            kept = await store.keep_late_result(
                call.session_key,
                call.id,
                attempt=call.attempt,
                fence=call.fence,
                arguments_hash=call.arguments_hash,
                result=finished.result,
            )
        except ServiceUnavailable:
            await asyncio.sleep(PAUSE)
            continue
        told = "kept beside the call" if kept else "not needed any more"
        logger.info("a tool returned after its lease was lost: its result is %s", told, extra=where)
        return


async def _counts(call: Call, finished: Finished, log_writer: LogWriter) -> bool:
    """The result is stored by the fence that started the call. The lease is not extended: its owner is gone."""

    def decide(uow: UnitOfWork) -> bool:
        if not any(each.id == call.id and each.state is CallState.STARTED for each in uow.calls):
            return False
        turn_rules.record_tool_results(uow, [finished])
        return True

    try:
        stored = await log_writer.append(call.session_key, decide, turn_id=call.turn_id, fence=call.fence)
    except LeaseLost:
        return False
    return isinstance(stored, Stored) and stored.value
