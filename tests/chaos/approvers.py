"""Approvers find pending approvals and approve, reject, contradict each other, decide late or never."""

import asyncio
import time
from collections.abc import Mapping

from tests.chaos import tenants
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
    """Lists the approvals of all sessions, and deals with each of them once, in the name of several people."""

    def __init__(self, caller: Caller, others: Mapping[str, Caller], *, term: Term) -> None:
        """`others`: who votes beside the caller, by principal; also who may not."""
        self._caller = caller
        self._others = others
        self._rng = caller.rng
        self._term = term
        self._seen: set[str] = set()

    async def lend(self) -> None:
        """Lends the authority of the last of the others to the deputy."""
        request = approval_pb2.DelegateApprovalsRequest(principal=tenants.DEPUTY)
        request.until.FromSeconds(int(time.time()) + 24 * 3600)
        await self._others[tenants.OTHERS[-1]].call("DelegateApprovals", request)

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
            await asyncio.gather(*map(self._finish, pending))
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

    async def _decide(self, approval: Approval, decision: int, *, all_: bool = False) -> None:
        """Sends one decision of several people, each to one replica or to several at once. `all_`: of all of them."""
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id,
            decision=decision,  # type: ignore[arg-type]
            arguments_hash=approval.arguments_hash,
            result_json='"marked as done"' if decision == _OUTCOMES["MARK_DONE"] else "",
        )
        await asyncio.gather(*(voter.copies("DecideApproval", request, most=3) for voter in self._voters(all_=all_)))

    def _voters(self, *, all_: bool) -> list[Caller]:
        """Returns the caller with some of the others, in any order: enough of them for a quorum most of the time."""
        if all_:
            return [self._caller, *self._others.values()]
        count = self._rng.choices(range(len(self._others) + 1), [1, 6, 4, 2, 1][: len(self._others) + 1])[0]
        voters = [self._caller, *self._rng.sample(sorted(self._others.values(), key=lambda voter: voter.name), count)]
        self._rng.shuffle(voters)
        return voters

    async def _wait_for(self, approval: Approval) -> None:
        request = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id)
        request.wait.FromSeconds(4)
        await self._caller.call("WaitApproval", request, wait=4.0)

    async def _finish(self, approval: Approval) -> None:
        is_outcome = approval.kind == event_pb2.APPROVAL_KIND_OUTCOME
        await self._decide(approval, _OUTCOMES["GIVE_UP"] if is_outcome else _APPROVE, all_=True)
