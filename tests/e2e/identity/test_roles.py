"""What each role may do with the sessions and approvals of others, and what is recorded of it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.foreign import SCRIPT
from tests.identities import connect_as, row, settings_of
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, audit_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = "".join(
    (
        row("anna", tenant="acme", roles=["caller"]),
        row("vera", tenant="acme", roles=["approver"]),
        row("ivan", tenant="acme", roles=["approver"]),
        row("olga", tenant="acme", roles=["operator"]),
        row("udo", tenant="acme", roles=["auditor"]),
        row("portal", tenant="acme", roles=["delegate"]),
        row("default", tenant="default", roles=["caller", "approver", "operator", "auditor"]),
        row("eve", tenant="default", roles=["caller"]),
    )
)


@dataclass(frozen=True, slots=True)
class Principals:
    """Stubs of each principal on one server."""

    address: str
    stack: contextlib.AsyncExitStack
    stubs: dict[str, Any] = field(default_factory=dict)

    async def as_(self, name: str, **metadata: str) -> Any:
        """Returns the stubs of a principal: TENANT/NAME, or NAME of the tenant `acme`."""
        key = f"{name} {metadata}"
        if key not in self.stubs:
            credential = name if "/" in name else f"acme/{name}"
            self.stubs[key] = await self.stack.enter_async_context(connect_as(self.address, credential, **metadata))
        return self.stubs[key]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def principals(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Principals]:
    settings = settings_of(tmp_path_factory.mktemp("identity"), ROWS)
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, agents=AGENTS) as running,
        harness.connect(running.address) as stubs,
    ):
        await harness.create_test_session(stubs, agent="talker", session_id="of-before")
        await harness.send_message_to_session(stubs, "of-before", "hello")
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, agents=AGENTS, **settings) as running,
        contextlib.AsyncExitStack() as stack,
    ):
        yield Principals(running.address, stack)


async def asking(principals: Principals, session_id: str) -> list[approval_pb2.Approval]:
    """Makes a session of anna's with two open approvals."""
    anna = await principals.as_("anna")
    await harness.create_test_session(anna, agent="asker", session_id=session_id)
    await harness.send_message_to_session(anna, session_id, "ask")
    listed = await anna.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session_id))
    return list(listed.approvals)


async def read(stubs: Any, session_id: str) -> None:
    """Reads the session by every method that reads one."""
    await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_id))
    watch = session_pb2.WatchEventsRequest(session_id=session_id)
    assert [response async for response in stubs.sessions.WatchEvents(watch)]
    await stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session_id))
    await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session_id))
    await stubs.sessions.ListCheckpoints(session_pb2.ListCheckpointsRequest(session_id=session_id))
    listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session_id))
    await stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session_id, turn_id=listed.turns[0].turn_id))


async def test_an_approver_reads_a_session_while_its_approvals_are_open_or_once_it_has_decided(
    principals: Principals,
) -> None:
    vera, ivan, anna = await principals.as_("vera"), await principals.as_("ivan"), await principals.as_("anna")
    approvals = await asking(principals, "for-approvers")
    for stubs in (vera, ivan):
        await read(stubs, "for-approvers")
    with refused("PERMISSION_DENIED"):
        await harness.decide(anna, approvals[0])
    for approval in approvals:
        decided = await harness.decide(vera, approval, approve=False)
        assert (decided.approval.decided_by, decided.approval.decided_through) == ("vera", "")
    await harness.wait_for_turn(anna, "for-approvers", approvals[0].turn_id)
    await read(vera, "for-approvers")
    with refused("SESSION_NOT_FOUND"):
        await ivan.sessions.GetSession(session_pb2.GetSessionRequest(session_id="for-approvers"))
    with refused("SESSION_NOT_FOUND"):
        await vera.sessions.GetSession(session_pb2.GetSessionRequest(session_id="unknown"))
    for call in (
        vera.sessions.ListSessions(session_pb2.ListSessionsRequest()),
        harness.send_message_to_session(vera, "for-approvers", "hello"),
        vera.sessions.EndSession(session_pb2.EndSessionRequest(session_id="for-approvers")),
        harness.create_test_session(vera, agent="talker"),
    ):
        with refused("PERMISSION_DENIED"):
            await call


async def test_an_operator_manages_the_sessions_of_its_tenant(principals: Principals) -> None:
    anna, olga = await principals.as_("anna"), await principals.as_("olga")
    await harness.create_test_session(anna, agent="talker", session_id="managed")
    await harness.send_message_to_session(anna, "managed", "hello")
    await read(olga, "managed")
    await olga.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id="managed"))
    events = await harness.all_events(anna, "managed")
    assert events[-1].session_suspended.principal == "olga"
    await olga.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id="managed"))
    listed = await olga.sessions.ListSessions(session_pb2.ListSessionsRequest(owner="anna"))
    assert "managed" in {session.session_id for session in listed.sessions}
    with refused("PERMISSION_DENIED"):
        await harness.send_message_to_session(olga, "managed", "hello")
    with refused("SESSION_NOT_FOUND"):
        await olga.sessions.EndSession(session_pb2.EndSessionRequest(session_id="of-before"))


async def test_an_auditor_reads_its_tenant_and_changes_nothing(principals: Principals) -> None:
    udo = await principals.as_("udo")
    approvals = await asking(principals, "audited")
    await read(udo, "audited")
    get = approval_pb2.GetApprovalRequest(approval_id=approvals[0].approval_id)
    assert (await udo.approvals.GetApproval(get)).approval.requester == "anna"
    for call in (
        harness.decide(udo, approvals[0]),
        udo.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id="audited")),
        udo.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id="audited", turn_id=approvals[0].turn_id)),
        harness.create_test_session(udo, agent="talker"),
    ):
        with refused("PERMISSION_DENIED"):
            await call


async def test_an_auditor_learns_nothing_of_other_tenants(principals: Principals) -> None:
    udo = await principals.as_("udo")
    messages = []
    for tenant in ("default", "nowhere"):
        with refused("PERMISSION_DENIED") as refusal:
            async for _ in udo.audit.ExportAudit(audit_pb2.ExportAuditRequest(tenant=tenant)):
                pass
        messages.append(refusal.details)
    assert messages[0] == messages[1]


async def test_a_person_owns_and_decides_through_a_delegate_and_both_are_recorded(principals: Principals) -> None:
    anna = await principals.as_("anna")
    for_anna = await principals.as_("portal", turnkeeper_on_behalf_of="anna")
    for_vera = await principals.as_("portal", turnkeeper_on_behalf_of="vera")
    create = session_pb2.CreateSessionRequest(session_id="through-portal", agent="asker")
    session = (await for_anna.sessions.CreateSession(create)).session
    assert (session.owner, session.created_through) == ("anna", "portal")
    again = await anna.sessions.CreateSession(create)
    assert again.session.created_through == "portal", "the person repeats the request itself"
    await harness.send_message_to_session(for_anna, "through-portal", "ask")
    approval = await harness.wait_for_approval(anna, "through-portal")
    assert approval.requester == "anna"
    decided = (await harness.decide(for_vera, approval, approve=False)).approval
    assert (decided.decided_by, decided.decided_through) == ("vera", "portal")
    events = await harness.all_events(anna, "through-portal")
    assert events[0].session_created.created_through == "portal"
    (event,) = [event.approval_decided for event in events if event.WhichOneof("payload") == "approval_decided"]
    assert (event.decided_by, event.decided_through) == ("vera", "portal")
    assert event.decision == event_pb2.APPROVAL_DECISION_REJECT


async def test_a_delegate_lends_no_role_beyond_the_persons_own(principals: Principals) -> None:
    for_olga = await principals.as_("portal", turnkeeper_on_behalf_of="olga")
    with refused("PERMISSION_DENIED"):
        await for_olga.sessions.ListSessions(session_pb2.ListSessionsRequest())
    for_eve = await principals.as_("portal", turnkeeper_on_behalf_of="eve")
    with refused("PRINCIPAL_UNKNOWN"):
        await for_eve.sessions.ListSessions(session_pb2.ListSessionsRequest())


async def test_what_was_there_before_belongs_to_the_principal_default(principals: Principals) -> None:
    default, eve = await principals.as_("default/default"), await principals.as_("default/eve")
    await read(default, "of-before")
    await harness.send_message_to_session(default, "of-before", "hello again")
    with refused("SESSION_NOT_FOUND"):
        await harness.send_message_to_session(eve, "of-before", "hello")
