"""BatchDecideApprovals, as a part of ApprovalService."""

import asyncio
from collections.abc import Sequence
from typing import Final

from turnkeeper.errors import ServiceUnavailable, SessionError
from turnkeeper.pb.v1 import approval_pb2
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.deadlines import within_deadline
from turnkeeper.rpc.items import Items
from turnkeeper.rpc.status import detail_of

AT_ONCE: Final = 16
"""Decisions of one call that are made at the same time."""
LARGE: Final = 32 * 1024
"""Bytes of an approval beyond which its long texts are left out of the response."""
LONGEST: Final = 600.0
"""Seconds that a call without a deadline has."""
NAME: Final = "turnkeeper.v1.ApprovalService/DecideApproval"

Decision = approval_pb2.DecideApprovalRequest
Result = approval_pb2.BatchDecideApprovalsResult


class BatchMethods:
    """Decides many approvals with one call."""

    _items: Items

    async def DecideApproval(
        self, request: approval_pb2.DecideApprovalRequest, context: Context
    ) -> approval_pb2.DecideApprovalResponse:
        """Decides one."""
        raise NotImplementedError

    async def BatchDecideApprovals(
        self, request: approval_pb2.BatchDecideApprovalsRequest, context: Context
    ) -> approval_pb2.BatchDecideApprovalsResponse:
        self._items.begin()
        return approval_pb2.BatchDecideApprovalsResponse(
            results=await self._decide_all(request.decisions, context, seconds=within_deadline(LONGEST, context))
        )

    async def _decide_all(self, decisions: Sequence[Decision], context: Context, *, seconds: float) -> Sequence[Result]:
        """Returns the results in the order of the decisions. What is not done after `seconds` is given up."""
        limit = asyncio.Semaphore(AT_ONCE)

        async def decide(decision: Decision) -> Result:
            async with limit:
                return await self._decide(decision, context)

        tasks = [asyncio.create_task(decide(decision)) for decision in decisions]
        try:
            await asyncio.wait(tasks, timeout=seconds)
            return [task.result() if task.done() else _undone() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decide(self, decision: Decision, context: Context) -> Result:
        try:
            decided = await self._items.call(self.DecideApproval, decision, context, name=NAME)
        except SessionError as error:
            return Result(error=detail_of(error.to_status()))
        if decided.approval.ByteSize() > LARGE:
            decided.approval.ClearField("arguments_json")
            decided.approval.ClearField("late_result_json")
        return Result(approval=decided.approval, sequence=decided.sequence)


def _undone() -> Result:
    message = "The deadline of the call came before this decision was stored; send it again."
    return Result(error=detail_of(ServiceUnavailable(message).to_status()))
