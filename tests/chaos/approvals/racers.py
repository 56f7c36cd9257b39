"""Races approvals: all who may and may not decide, the requester who cancels, and the expiry."""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration

from tests.chaos import tenants
from tests.chaos.approvals.plan import Kind, Race
from tests.chaos.calls import Caller, Replicas
from tests.chaos.record import CALLS, LOAD, Recorder
from tests.harness import text_parts
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

AGENT: Final = "raced"
MAY: Final[Sequence[str]] = (tenants.APPROVER, *tenants.OTHERS, tenants.DEPUTY)
MAY_NOT: Final = (tenants.USER, tenants.FRIEND, tenants.SPY)
"""Who caused the call, who has that one's authority, and who has no one's."""
TOGETHER: Final = 20
"""Races at once."""
MOST_MINUTES: Final = 20
"""After so many minutes no call is tried again."""
AFTER: Final = 0.3
"""Seconds after the expiry up to which all try to decide."""
_WAIT: Final = 4
_APPROVE, _REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
_GIVE_UP = event_pb2.APPROVAL_DECISION_GIVE_UP
_ENDED = frozenset({chat_pb2.TURN_STATE_COMPLETED, chat_pb2.TURN_STATE_FAILED, chat_pb2.TURN_STATE_CANCELLED})

Approval = approval_pb2.Approval


async def run(races: Sequence[Race], *, addresses: list[str], identity: Path, out: Path) -> None:
    """Runs the races, TOGETHER at once, and records each call in the folder `out`.

    `identity`: the folder of `tenants.write`.
    """
    until = time.monotonic() + 60 * MOST_MINUTES
    with Recorder(out / CALLS) as record:
        async with Replicas(addresses) as replicas, asyncio.TaskGroup() as group:
            by_tenant = {}
            for tenant in tenants.TENANTS:
                callers = {
                    name: Caller(
                        name,
                        replicas.of(tenants.identity(identity, tenant, name)),
                        record.of(tenant),
                        rng=random.Random(f"{tenant} {name}"),
                        group=group,
                        until=until,
                    )
                    for name in tenants.PRINCIPALS
                }
                by_tenant[tenant] = Racers(callers)
                await by_tenant[tenant].lend()
            places = asyncio.Semaphore(TOGETHER)

            async def race(one: Race) -> None:
                async with places:
                    await by_tenant[one.tenant].race(one)

            await asyncio.gather(*map(race, races))
    (out / LOAD).write_text(json.dumps({"over": time.time()}) + "\n")


class Racers:
    """The people of one tenant."""

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self._callers = callers
        self._user = callers[tenants.USER]

    async def lend(self) -> None:
        """Lends the authority of one who may decide to the deputy, and that of the requester to its friend."""
        for person, delegate in ((tenants.OTHERS[-1], tenants.DEPUTY), (tenants.USER, tenants.FRIEND)):
            request = approval_pb2.DelegateApprovalsRequest(principal=delegate)
            request.until.FromSeconds(int(time.time()) + 24 * 3600)
            await self._callers[person].call("DelegateApprovals", request)

    async def race(self, race: Race) -> None:
        """Sends a message whose call asks, lets all try to decide it, and brings its turn to its end."""
        request = chat_pb2.SendMessageRequest(
            session_id=race.session,
            request_id=race.session,
            content=text_parts(f"{race.tool} {race.label}: please"),
            wait=Duration(),
        )
        request.create_session.agent = AGENT
        answer = await self._user.call("SendMessage", request)
        if not answer.ok:
            return
        turn_id = answer.response.turn.turn_id
        approval = await self._asked(race, turn_id)
        if approval is not None:
            await self._decide_at_once(race, approval)
        await self._finish(race, turn_id)

    async def _asked(self, race: Race, turn_id: str) -> Approval | None:
        """Returns the approval that the turn waits for; None if it ends without one."""
        while not await self._is_over(race, turn_id):
            if pending := await self._pending(race):
                return pending[0]
        return None

    async def _is_over(self, race: Race, turn_id: str) -> bool:
        """Returns True once the turn has ended, or cannot be read any more. It waits while the turn runs."""
        request = chat_pb2.GetTurnRequest(session_id=race.session, turn_id=turn_id, wait=Duration(seconds=_WAIT))
        answer = await self._user.call("GetTurn", request, wait=_WAIT)
        return not answer.ok or answer.response.turn.state in _ENDED

    async def _pending(self, race: Race) -> list[Approval]:
        request = approval_pb2.ListApprovalsRequest(
            session_id=race.session, states=[approval_pb2.APPROVAL_STATE_PENDING], page_size=10
        )
        answer = await self._callers[tenants.APPROVER].call("ListApprovals", request)
        return list(answer.response.approvals) if answer.ok else []

    async def _decide_at_once(self, race: Race, approval: Approval) -> None:
        """Lets all try to decide it at about its expiry, and the requester cancel the turn."""
        if race.kind is Kind.EDITED:
            await self._vote(MAY[0], approval)
            await self._vote(MAY[1], approval, edited=json.dumps({"label": race.label, "amount": 8}))
            approval = next(iter(await self._pending(race)), approval)
        voters = MAY
        if race.kind is Kind.DOUBLED:
            voters = (tenants.OTHERS[-1], tenants.DEPUTY)
            for name in voters:
                await self._vote(name, approval)
        rejects = race.rng.choice(voters) if race.rejects else ""
        expiry = approval.expire_time.ToNanoseconds() / 1e9
        votes = [
            self._vote(
                name,
                approval,
                _REJECT if name == rejects else _APPROVE,
                at=expiry + race.rng.uniform(-race.spread, AFTER),
            )
            for name in (*voters, *MAY_NOT)
        ]
        cancelled_at = expiry + race.rng.uniform(-race.spread, race.spread)
        await asyncio.gather(*votes, self._cancel(race, approval, at=cancelled_at))

    async def _vote(
        self,
        name: str,
        approval: Approval,
        decision: event_pb2.ApprovalDecision.ValueType = _APPROVE,
        *,
        at: float = 0.0,
        edited: str = "",
    ) -> None:
        """Votes at this time of the wall clock, on any replica, until there is a final answer."""
        await asyncio.sleep(at - time.time())
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id,
            decision=decision,
            arguments_hash=approval.arguments_hash,
            edited_arguments_json=edited,
        )
        await self._callers[name].call("DecideApproval", request)

    async def _cancel(self, race: Race, approval: Approval, *, at: float) -> None:
        await asyncio.sleep(at - time.time())
        request = chat_pb2.CancelTurnRequest(session_id=race.session, turn_id=approval.turn_id)
        await self._user.call("CancelTurn", request)

    async def _finish(self, race: Race, turn_id: str) -> None:
        """Gives up unknown outcomes, and lets the rest expire, until the turn has ended."""
        while not await self._is_over(race, turn_id):
            for approval in await self._pending(race):
                if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME:
                    await self._vote(tenants.APPROVER, approval, _GIVE_UP)
                else:
                    request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id)
                    request.wait.FromSeconds(_WAIT)
                    await self._callers[tenants.APPROVER].call("WaitApproval", request, wait=_WAIT)
