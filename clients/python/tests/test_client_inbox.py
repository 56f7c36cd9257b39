"""The inbox of an approver: what is yielded, and how it goes on after a broken connection."""

from contextlib import aclosing

import grpc
import pytest

from turnkeeper_client import ApprovalInbox
from turnkeeper_client.errors import PermissionDenied
from turnkeeper_client.pb.v1 import approval_pb2, error_pb2
from turnkeeper_client.pb.v1.approval_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_PENDING,
    Approval,
    WatchApprovalsResponse,
)
from turnkeeper_client_testing.server import STAY, Refuse, Step, refuse, stage

ROTATED = refuse(error_pb2.SESSION_ERROR_CODE_STREAM_ROTATED, on_stream=True)
BROKEN = Refuse(status=grpc.StatusCode.UNAVAILABLE)


def waits(name: str, *, reason: str = "") -> Approval:
    return Approval(approval_id=name, state=APPROVAL_STATE_PENDING, reason=reason)


def snapshot(*approvals: Approval, reset: bool = False) -> WatchApprovalsResponse:
    return WatchApprovalsResponse(approvals=approvals, caught_up=True, reset=reset)


def got(approval: Approval) -> approval_pb2.GetApprovalResponse:
    return approval_pb2.GetApprovalResponse(approval=approval)


async def first(inbox: ApprovalInbox, count: int) -> list[tuple[str, str]]:
    """Returns the first approvals of a loop, each with what stood in `waiting` when it was yielded."""
    shown: list[tuple[str, str]] = []
    async with aclosing(aiter(inbox)) as approvals:
        async for approval in approvals:
            shown.append((approval.approval_id, "".join(inbox.waiting)))
            if len(shown) == count:
                break
    return shown


async def test_what_waits_comes_first_then_what_changes_and_what_goes() -> None:
    steps: list[Step] = [
        WatchApprovalsResponse(approvals=[waits("a")]),
        snapshot(waits("b")),
        WatchApprovalsResponse(),
        WatchApprovalsResponse(approvals=[waits("b"), waits("a", reason="changed"), waits("c")]),
        WatchApprovalsResponse(gone=[Approval(approval_id="a", state=APPROVAL_STATE_APPROVED)]),
        STAY,
    ]
    async with stage(steps) as on:
        inbox = on.client.approvals.inbox(tool="act", agent="clerk")
        assert await first(inbox, 5) == [("a", "a"), ("b", "ab"), ("a", "abc"), ("c", "abc"), ("a", "bc")]
        assert inbox.caught_up
        (request,) = on.script.requests
        assert (request.tool, request.agent) == ("act", "clerk")


@pytest.mark.parametrize("end", [ROTATED, BROKEN], ids=["planned", "broken"])
async def test_a_broken_connection_shows_only_what_has_changed_meanwhile(end: Refuse) -> None:
    before: list[Step] = [snapshot(waits("a"), waits("b"), waits("c"), waits("d")), end]
    after: list[Step] = [snapshot(waits("b"), waits("c", reason="changed"), waits("e")), STAY]
    gone = got(Approval(approval_id="a", state=APPROVAL_STATE_EXPIRED))
    deleted = refuse(error_pb2.SESSION_ERROR_CODE_APPROVAL_NOT_FOUND)
    async with stage(before, after) as on:
        on.script.answers.extend((gone, deleted))
        inbox = on.client.approvals.inbox()
        shown = await first(inbox, 7)
    assert [name for name, _ in shown] == ["a", "b", "c", "d", "c", "e", "a"]
    assert shown[-1] == ("a", "bce")


async def test_a_reset_forgets_what_no_longer_matches() -> None:
    steps: list[Step] = [snapshot(waits("a"), waits("b")), snapshot(waits("b"), waits("c"), reset=True), STAY]
    async with stage(steps) as on:
        on.script.answers.append(got(Approval(approval_id="a", state=APPROVAL_STATE_APPROVED)))
        assert [name for name, _ in await first(on.client.approvals.inbox(), 4)] == ["a", "b", "c", "a"]


async def test_another_loop_goes_on_with_what_is_new() -> None:
    both = snapshot(waits("a"), waits("b"))
    async with stage([both, STAY], [snapshot(waits("a"), waits("b"), waits("c")), STAY]) as on:
        inbox = on.client.approvals.inbox()
        assert [name for name, _ in await first(inbox, 2)] == ["a", "b"]
        assert [name for name, _ in await first(inbox, 1)] == ["c"]


async def test_what_a_loop_has_left_is_yielded_by_the_next() -> None:
    both = snapshot(waits("a"), waits("b"))
    async with stage([both, STAY], [both, STAY]) as on:
        inbox = on.client.approvals.inbox()
        assert [name for name, _ in await first(inbox, 1)] == ["a"]
        assert [name for name, _ in await first(inbox, 1)] == ["b"]


async def test_a_connection_that_breaks_while_what_went_is_read_is_replaced_as_any_other() -> None:
    before: list[Step] = [snapshot(waits("a"), waits("b")), BROKEN]
    after: list[Step] = [snapshot(waits("b"), waits("c")), STAY]
    async with stage(before, after, after) as on:
        on.script.answers.append(Refuse(status=grpc.StatusCode.INTERNAL))
        on.script.answers.append(got(Approval(approval_id="a", state=APPROVAL_STATE_EXPIRED)))
        shown = await first(on.client.approvals.inbox(), 4)
    assert shown == [("a", "ab"), ("b", "ab"), ("c", "bc"), ("a", "bc")]


async def test_a_final_error_is_raised() -> None:
    async with stage([refuse(error_pb2.SESSION_ERROR_CODE_PERMISSION_DENIED)]) as on:
        with pytest.raises(PermissionDenied):
            await first(on.client.approvals.inbox(), 1)
