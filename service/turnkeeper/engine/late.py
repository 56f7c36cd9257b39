"""Tools that outlive their owner's lease: each comes to its end, and what it returned is kept, never as an event."""

import asyncio
import logging
from dataclasses import dataclass

from turnkeeper.domain.tool import Call, CallState
from turnkeeper.engine import decisions
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.journal import Journal
from turnkeeper.engine.running_tools import DEAF_TIME
from turnkeeper.engine.toolbox import Finished
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import Store
from turnkeeper.store.step import Committed, Fenced

PAUSE = 1.0
"""Seconds between tries while the database does not answer."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A started call that must not run twice, and its tool at work; its owner is not sure of the lease any more."""

    call: Call
    tool: asyncio.Task[Finished]


async def see_off(left: Left, *, store: Store, journal: Journal) -> None:
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
            if await _counts(call, finished, store=store, journal=journal):
                return
            kept = await store.keep_late_result(
                call.tenant,
                call.session_id,
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
        log.info("a tool returned after its lease was lost: its result is %s", told, extra=where)
        return


async def _counts(call: Call, finished: Finished, *, store: Store, journal: Journal) -> bool:
    """The result is stored by the fence that started the call. The lease is not extended: its owner is gone."""
    while True:
        snapshot = await store.snapshot(call.tenant, call.session_id, turn_id=call.turn_id)
        if snapshot is None or snapshot.head.fence != call.fence or not snapshot.head.owner:
            return False
        if not any(each.id == call.id and each.state is CallState.STARTED for each in snapshot.calls):
            return False
        draft = Draft(snapshot, at=journal.now(), new_id=journal.new_id)
        decisions.record_results(draft, [finished])
        verdict = await journal.commit(draft.step(step_id=journal.new_id(), fence=call.fence))
        if isinstance(verdict, Committed):
            return True
        if isinstance(verdict, Fenced):
            return False
