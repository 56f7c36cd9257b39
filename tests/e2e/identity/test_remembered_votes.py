"""Remembered decisions where callers are told apart: all needed votes ask for it, for one requester, and on record."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.voters import APPROVE, Served, serving_voters
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARGUMENTS = event_pb2.REMEMBER_SCOPE_ARGUMENTS
WAITS, DONE = chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_COMPLETED
HOUR = Duration(seconds=3600)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("remembered")
    async with serving_voters(mongo_uri, module_database, folder, replicas=1) as served:
        yield served
        await check(mongo_uri, module_database)


async def approve(served: Served, approval: approval_pb2.Approval, by: str, **remember: Any) -> approval_pb2.Approval:
    return (await harness.answer(await served.as_(by), approval, APPROVE, **remember)).approval


async def remembered(served: Served, label: str) -> approval_pb2.Approval:
    """Returns an approval whose decision is remembered for 2 uses; its turn has ended."""
    approval = await served.pending(label)
    await approve(served, approval, "bob", remember=ARGUMENTS, remember_for=HOUR, remember_uses=2)
    await approve(served, approval, "eve", remember=ARGUMENTS, remember_for=HOUR, remember_uses=5)
    await harness.wait_for_turn(await served.as_("anna"), label, approval.turn_id)
    return approval


async def again(served: Served, label: str, **metadata: str) -> chat_pb2.Turn:
    sender = await served.as_("portal" if metadata else "anna", 0, **metadata)
    return await harness.send_message_to_session(sender, label, f"do {label}")


async def listed(served: Served, label: str, by: str = "anna") -> list[event_pb2.RememberedDecision]:
    request = approval_pb2.ListRememberedDecisionsRequest(session_id=label)
    return list((await (await served.as_(by)).approvals.ListRememberedDecisions(request)).decisions)


async def revoke(served: Served, approval: approval_pb2.Approval, by: str) -> int:
    request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=approval.approval_id)
    return int((await (await served.as_(by)).approvals.RevokeRememberedDecision(request)).sequence)


async def test_all_needed_votes_ask_for_it_and_the_narrowest_counts(served: Served, tool_control: ToolControl) -> None:
    first = await remembered(served, "both")
    (decision,) = await listed(served, "both")
    assert (list(decision.decided_by), decision.uses_left) == (["bob", "eve"], 2)
    turn = await again(served, "both")
    assert turn.state == DONE
    assert len(tool_control.effects("both")) == 2
    (use,) = await served.records(session_id="both", action="use_remembered_decision")
    assert (use["details"]["remembered_from"], use["principal"]) == (first.approval_id, "")
    assert use["outcome"] == "APPROVED"


async def test_one_vote_that_does_not_ask_is_enough_to_forget(served: Served) -> None:
    approval = await served.pending("one")
    await approve(served, approval, "bob", remember=ARGUMENTS, remember_for=HOUR)
    decided = await approve(served, approval, "eve")
    assert decided.state == approval_pb2.APPROVAL_STATE_APPROVED
    assert await listed(served, "one") == []
    await harness.wait_for_turn(await served.as_("anna"), "one", approval.turn_id)
    assert (await again(served, "one")).state == WAITS


async def test_a_vote_is_not_repeated_with_another_wish(served: Served) -> None:
    approval = await served.pending("repeated")
    wish: dict[str, Any] = {"remember": ARGUMENTS, "remember_for": HOUR}
    await approve(served, approval, "bob", **wish)
    await approve(served, approval, "bob", **wish)
    with refused("APPROVAL_ALREADY_PROCESSED"):
        await approve(served, approval, "bob")
    await approve(served, approval, "eve", **wish)
    with refused("APPROVAL_ALREADY_PROCESSED"):
        await approve(served, approval, "eve")
    assert len(await listed(served, "repeated")) == 1


async def test_it_is_bound_to_who_caused_the_call(served: Served) -> None:
    """A delegate that carries the message is another one who caused the call."""
    await remembered(served, "carried")
    assert (await again(served, "carried", turnkeeper_on_behalf_of="anna")).state == WAITS


async def test_who_sees_it_and_who_revokes_it(served: Served) -> None:
    first = await remembered(served, "revoked")
    with refused("SESSION_NOT_FOUND"):
        await listed(served, "revoked", by="kim")
    with refused("APPROVAL_NOT_FOUND"):
        await revoke(served, first, by="kim")
    with refused("PERMISSION_DENIED"):
        await revoke(served, first, by="udo")
    for reader in ("bob", "udo", "anna"):
        assert len(await listed(served, "revoked", by=reader)) == 1
    sequence = await revoke(served, first, by="anna")
    assert await revoke(served, first, by="bob") == 0
    (record,) = await served.records(session_id="revoked", action="revoke_remembered_decision")
    assert (record["principal"], record["target"], record["sequence"]) == ("anna", first.approval_id, sequence)
    assert (await again(served, "revoked")).state == WAITS
