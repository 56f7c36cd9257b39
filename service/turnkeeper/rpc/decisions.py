"""BatchDecideApprovals: many decisions with one call, each by itself."""

import asyncio
from typing import Final

from turnkeeper.errors import ServiceUnavailable, SessionError
from turnkeeper.pb.v1 import approval_pb2
from turnkeeper.rpc.context import Context, Run
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
Decided = approval_pb2.DecideApprovalResponse
Result = approval_pb2.BatchDecideApprovalsResult


async def decide_all(
    request: approval_pb2.BatchDecideApprovalsRequest, context: Context, *, decide: Run, items: Items
) -> approval_pb2.BatchDecideApprovalsResponse:
    """Makes each decision by `decide`, the method DecideApproval. Returns the results in the order of the decisions.

    What is not done at the deadline of the call is given up.
    """
    items.begin()
    limit = asyncio.Semaphore(AT_ONCE)

    async def result_of(decision: Decision) -> Result:
        async with limit:
            return await _result_of(decision, context, decide=decide, items=items)

    tasks = [asyncio.create_task(result_of(decision)) for decision in request.decisions]
    try:
        await asyncio.wait(tasks, timeout=within_deadline(LONGEST, context))
        results = [task.result() if task.done() else _undone() for task in tasks]
        return approval_pb2.BatchDecideApprovalsResponse(results=results)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _result_of(decision: Decision, context: Context, *, decide: Run, items: Items) -> Result:
    try:
        decided: Decided = await items.call(decide, decision, context, name=NAME)
    except SessionError as error:
        return Result(error=detail_of(error.to_status()))
    if decided.approval.ByteSize() > LARGE:
        decided.approval.ClearField("arguments_json")
        decided.approval.ClearField("late_result_json")
    return Result(approval=decided.approval, sequence=decided.sequence)


def _undone() -> Result:
    message = "The deadline of the call came before the outcome of this decision was known; send it again."
    return Result(error=detail_of(ServiceUnavailable(message).to_status()))
