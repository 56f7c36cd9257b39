"""Remembered decisions where callers are told apart: all needed votes ask for it, for one requester, and on record."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.checker.compare import check
from tests.identities import connect_as, row, settings_of
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, audit_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Done."
"""
AGENTS = """
[[agent]]
name = "payer"
tools = ["act"]
[[agent.policy]]
tool = "act"
[agent.policy.approve]
groups = ["finance"]
k = 2
"""
ROWS = "".join(
    (
        row("anna", tenant="acme", roles=["caller", "approver"], groups=["finance"]),
        row("bob", tenant="acme", roles=["approver"], groups=["finance"]),
        row("eve", tenant="acme", roles=["approver"], groups=["finance"]),
        row("kim", tenant="acme", roles=["caller"]),
        row("portal", tenant="acme", roles=["delegate"]),
        row("udo", tenant="acme", roles=["auditor"]),
    )
)
ARGUMENTS = event_pb2.REMEMBER_SCOPE_ARGUMENTS
WAITS, DONE = chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_COMPLETED
HOUR = Duration(seconds=3600)


@dataclass(frozen=True, slots=True)
class Served:
    """A server, and its callers."""

    mongo_uri: str
    database: str
    address: str
    stack: contextlib.AsyncExitStack

    async def as_(self, name: str, **metadata: str) -> Any:
        """Returns the stubs of a principal of the tenant `acme`."""
        return await self.stack.enter_async_context(connect_as(self.address, f"acme/{name}", **metadata))

    async def pending(self, label: str) -> approval_pb2.Approval:
        """Returns an approval of a session of anna's, which waits."""
        anna = await self.as_("anna")
        await harness.create_test_session(anna, agent="payer", session_id=label)
        await harness.send_message_to_session(anna, label, f"do {label}")
        return await harness.wait_for_approval(anna, label)

    async def approve(self, approval: approval_pb2.Approval, by: str, **remember: Any) -> approval_pb2.Approval:
        decision = event_pb2.APPROVAL_DECISION_APPROVE
        return (await harness.answer(await self.as_(by), approval, decision, **remember)).approval

    async def remembered(self, label: str) -> approval_pb2.Approval:
        """Returns an approval whose decision is remembered for 2 uses; its turn has ended."""
        approval = await self.pending(label)
        await self.approve(approval, "bob", remember=ARGUMENTS, remember_for=HOUR, remember_uses=2)
        await self.approve(approval, "eve", remember=ARGUMENTS, remember_for=HOUR, remember_uses=5)
        await harness.wait_for_turn(await self.as_("anna"), label, approval.turn_id)
        return approval

    async def again(self, label: str, **metadata: str) -> chat_pb2.Turn:
        sender = await self.as_("portal" if metadata else "anna", **metadata)
        return await harness.send_message_to_session(sender, label, f"do {label}")

    async def listed(self, label: str, by: str = "anna") -> list[event_pb2.RememberedDecision]:
        request = approval_pb2.ListRememberedDecisionsRequest(session_id=label)
        return list((await (await self.as_(by)).approvals.ListRememberedDecisions(request)).decisions)

    async def revoke(self, approval: approval_pb2.Approval, by: str) -> int:
        request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=approval.approval_id)
        return int((await (await self.as_(by)).approvals.RevokeRememberedDecision(request)).sequence)

    async def records(self, label: str, action: str) -> list[dict[str, Any]]:
        responses = (await self.as_("udo")).audit.ExportAudit(audit_pb2.ExportAuditRequest())
        lines = b"".join([response.lines async for response in responses]).splitlines()
        records = [json.loads(record["record"]["text"]) for line in lines if "record" in (record := json.loads(line))]
        return [record for record in records if (record["session_id"], record["action"]) == (label, action)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    folder: Path = tmp_path_factory.mktemp("remembered")
    (folder / "agents.toml").write_text(AGENTS)
    settings = settings_of(folder, ROWS)
    async with contextlib.AsyncExitStack() as stack:
        model = await stack.enter_async_context(harness.scripted(SCRIPT))
        serving = harness.serving(mongo_uri, module_database, model, agents=folder / "agents.toml", **settings)
        running = await stack.enter_async_context(serving)
        yield Served(mongo_uri, module_database, running.address, stack)
        await check(mongo_uri, module_database)


async def test_all_needed_votes_ask_for_it_and_the_narrowest_counts(served: Served, tool_control: ToolControl) -> None:
    first = await served.remembered("both")
    (decision,) = await served.listed("both")
    assert (list(decision.decided_by), decision.uses_left) == (["bob", "eve"], 2)
    turn = await served.again("both")
    assert turn.state == DONE
    assert len(tool_control.effects("both")) == 2
    (use,) = await served.records("both", "use_remembered_decision")
    assert (use["details"]["remembered_from"], use["principal"]) == (first.approval_id, "")
    assert use["outcome"] == "APPROVED"


async def test_one_vote_that_does_not_ask_is_enough_to_forget(served: Served) -> None:
    approval = await served.pending("one")
    await served.approve(approval, "bob", remember=ARGUMENTS, remember_for=HOUR)
    decided = await served.approve(approval, "eve")
    assert decided.state == approval_pb2.APPROVAL_STATE_APPROVED
    assert await served.listed("one") == []
    await harness.wait_for_turn(await served.as_("anna"), "one", approval.turn_id)
    assert (await served.again("one")).state == WAITS


async def test_a_vote_is_not_repeated_with_another_wish(served: Served) -> None:
    approval = await served.pending("repeated")
    wish: dict[str, Any] = {"remember": ARGUMENTS, "remember_for": HOUR}
    await served.approve(approval, "bob", **wish)
    await served.approve(approval, "bob", **wish)
    with refused("APPROVAL_ALREADY_PROCESSED"):
        await served.approve(approval, "bob")
    await served.approve(approval, "eve", **wish)
    with refused("APPROVAL_ALREADY_PROCESSED"):
        await served.approve(approval, "eve")
    assert len(await served.listed("repeated")) == 1


async def test_it_is_bound_to_who_caused_the_call(served: Served) -> None:
    """A delegate that carries the message is another one who caused the call."""
    await served.remembered("carried")
    assert (await served.again("carried", turnkeeper_on_behalf_of="anna")).state == WAITS


async def test_who_sees_it_and_who_revokes_it(served: Served) -> None:
    first = await served.remembered("revoked")
    with refused("SESSION_NOT_FOUND"):
        await served.listed("revoked", by="kim")
    with refused("APPROVAL_NOT_FOUND"):
        await served.revoke(first, by="kim")
    with refused("PERMISSION_DENIED"):
        await served.revoke(first, by="udo")
    for reader in ("bob", "udo", "anna"):
        assert len(await served.listed("revoked", by=reader)) == 1
    sequence = await served.revoke(first, by="anna")
    assert await served.revoke(first, by="bob") == 0
    (record,) = await served.records("revoked", "revoke_remembered_decision")
    assert (record["principal"], record["target"], record["sequence"]) == ("anna", first.approval_id, sequence)
    assert (await served.again("revoked")).state == WAITS
