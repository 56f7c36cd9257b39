"""Approvers find pending approvals and approve, reject, contradict each other, decide late or never."""

import asyncio
import time

from tests.chaos.calls import Caller
from tests.chaos.users import Term
from turnkeeper.pb.v1 import approval_pb2, event_pb2, session_pb2

Approval = approval_pb2.Approval
_EVERY = 0.8
_APPROVE, _REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
_OUTCOMES = {"RETRY": 3, "MARK_DONE": 4, "GIVE_UP": 5}
"""The decisions on an unknown outcome, by their numbers on the wire."""
_PLANS = {"approve": 11, "reject": 5, "race": 3, "wait": 2, "late": 2, "never": 1}


class Approver:
    """Lists the approvals of all sessions, and deals with each of them once."""

    def __init__(self, caller: Caller, *, term: Term) -> None:
        self._caller = caller
        self._rng = caller.rng
        self._term = term
        self._seen: set[str] = set()

    async def work(self, done: asyncio.Event) -> None:
        """Decides approvals until the users are done. `finish` decides the rest, so that their turns can end."""
        async with asyncio.TaskGroup() as group:
            while not done.is_set():
                for approval in await self._pending():
                    if approval.approval_id not in self._seen:
                        self._seen.add(approval.approval_id)
                        group.create_task(self._deal_with(approval))
                await asyncio.sleep(_EVERY)

    async def finish(self) -> None:
        """Approves every pending approval, until no session has an active turn or the term is over."""
        while time.monotonic() < self._term.until:
            pending = await self._pending()
            await asyncio.gather(*(self._decide(approval, self._kind_of_yes(approval)) for approval in pending))
            if not pending and not await self._goes_on_somewhere():
                return
            await asyncio.sleep(_EVERY)

    async def _goes_on_somewhere(self) -> bool:
        """Returns True if a session still has an active turn, or if the sessions cannot be listed."""
        request = session_pb2.ListSessionsRequest(states=[session_pb2.SESSION_STATE_ACTIVE], page_size=100)
        while True:
            answer = await self._caller.call("ListSessions", request)
            if not answer.ok or any(session.active_turn_id for session in answer.response.sessions):
                return True
            request.page_token = answer.response.next_page_token
            if not request.page_token:
                return False

    async def _pending(self) -> list[Approval]:
        request = approval_pb2.ListApprovalsRequest(states=[approval_pb2.APPROVAL_STATE_PENDING], page_size=100)
        answer = await self._caller.call("ListApprovals", request)
        return list(answer.response.approvals) if answer.ok else []

    async def _deal_with(self, approval: Approval) -> None:
        if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME:
            await self._decide(approval, self._rng.choice(list(_OUTCOMES.values())))
            return
        match self._rng.choices(list(_PLANS), list(_PLANS.values()))[0]:
            case "approve":
                await asyncio.sleep(self._rng.random())
                await self._decide(approval, _APPROVE)
            case "reject":  # a sibling may run by then
                await asyncio.sleep(self._rng.random() * 1.5)
                await self._decide(approval, _REJECT)
            case "race":
                await asyncio.gather(self._decide(approval, _APPROVE), self._decide(approval, _REJECT))
            case "wait":
                await asyncio.gather(self._wait_for(approval), self._decide_after(approval, self._rng.random() * 2))
            case "late":
                await self._decide_after(approval, 2.4 + self._rng.random())
            case _:
                pass

    async def _decide_after(self, approval: Approval, seconds: float) -> None:
        """Approves after this time: at about the time at which short approvals expire."""
        await asyncio.sleep(seconds)
        await self._decide(approval, _APPROVE)

    async def _decide(self, approval: Approval, decision: int) -> None:
        """Sends one decision, to one replica or to several at once."""
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id,
            decision=decision,  # type: ignore[arg-type]
            arguments_hash=approval.arguments_hash,
            result_json='"marked as done"' if decision == _OUTCOMES["MARK_DONE"] else "",
        )
        await self._caller.copies("DecideApproval", request, most=3)

    async def _wait_for(self, approval: Approval) -> None:
        request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id)
        request.wait.FromSeconds(4)
        await self._caller.call("WaitApproval", request, wait=4.0)

    def _kind_of_yes(self, approval: Approval) -> int:
        return _OUTCOMES["GIVE_UP"] if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME else _APPROVE
