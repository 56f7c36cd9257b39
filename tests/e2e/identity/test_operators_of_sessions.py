"""Every RPC as an operator's on another one's session: what it changes is on record. Every RPC during a freeze."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.foreign import LENT_TO, METHODS, SCRIPT, Belongings, Owner, build, ids_in
from tests.identities import row, settings_of, stubs_as
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.dev_credentials import ISSUER
from turnkeeper.engine.operations import MOST_FREEZES
from turnkeeper.identity.caller import AccessRole
from turnkeeper.pb.v1 import audit_pb2, chat_pb2, operator_pb2, session_pb2
from turnkeeper.rpc.access import AccessRules
from turnkeeper.rpc.server import OUR_FILES

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANNA, OLGA, UDO, OTTO = "acme/anna", "acme/olga", "acme/udo", "acme/otto"
DEPUTY = f"acme/{LENT_TO}"
ROLES = {
    ANNA: ["caller", "approver"],
    OLGA: ["operator"],
    UDO: ["auditor"],
    OTTO: ["caller", "operator"],
    DEPUTY: ["approver"],
}
OPERATORS = [
    method
    for (service, method), access in AccessRules(OUR_FILES).by_method.items()
    if AccessRole.OPERATOR in access.roles and not service.endswith("OperatorService")
]
CHANGES = frozenset(
    (
        "UpdateSession",
        "SuspendSession",
        "ResumeSession",
        "EndSession",
        "DeleteSession",
        "UndeleteSession",
        "RestoreCheckpoint",
        "CancelTurn",
        "RetryTurn",
    )
)
"""The methods by which an operator changes another one's session."""
BEFORE = {
    "ResumeSession": ("SuspendSession", session_pb2.SuspendSessionRequest),
    "UndeleteSession": ("DeleteSession", session_pb2.DeleteSessionRequest),
}
"""What the session's owner calls before, so that the method has something to change."""
NEW_WORK = frozenset({"CreateSession", "ForkSession", "SendMessage", "StreamMessage", "RetryTurn"})
LAST = (
    "BatchDecideApprovals",
    "DecideApproval",
    "RestoreCheckpoint",
    "CancelTurn",
    "SuspendSession",
    "ResumeSession",
    "EndSession",
    "DeleteSession",
)
"""What would change the answers to the other methods, in the order in which all of them succeed."""
RUNS = r"""
[[reply]]
match = '^run (?P<label>[\w-]+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]
"""


@dataclass(frozen=True, slots=True)
class Served:
    address: str
    database: AsyncDatabase[dict[str, Any]]

    @contextlib.asynccontextmanager
    async def as_(self, name: str, **metadata: str) -> AsyncIterator[harness.Stubs]:
        async with aio.insecure_channel(self.address) as channel:
            yield stubs_as(channel, name, **metadata)

    @contextlib.asynccontextmanager
    async def owner(self, name: str) -> AsyncIterator[Owner]:
        async with aio.insecure_channel(self.address) as channel:
            yield Owner(name=name, channel=channel)

    async def records(self, session_id: str) -> list[dict[str, Any]]:
        """Returns the tenant's records of a session, decisions left out."""
        async with self.as_(UDO) as stubs:
            responses = stubs.audit.ExportAudit(audit_pb2.ExportAuditRequest())
            lines = b"".join([response.lines async for response in responses]).splitlines()
        texts = [json.loads(json.loads(line)["record"]["text"]) for line in lines if line.startswith(b'{"record')]
        return [text for text in texts if text["session_id"] == session_id and text["action"] != "decide_approval"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    rows = [row(name.split("/")[1], tenant="acme", roles=roles) for name, roles in ROLES.items()]
    folder: Path = tmp_path_factory.mktemp("identity")
    async with (
        harness.scripted(RUNS + SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, agents=AGENTS, **settings_of(folder, *rows)) as running,
        AsyncMongoClient[dict[str, Any]](mongo_uri) as client,
    ):
        yield Served(running.address, client[module_database])


async def request_of(method: str, owned: Belongings) -> Any:
    """Returns the owner's request, without what only the owner may use."""
    request = await owned.request(method)
    if "page_token" in request.DESCRIPTOR.fields_by_name:
        request.page_token = ""
    if method == "CancelTurn":
        session = request.session_id = owned.ids["SubmitToolResult.session_id"]
        stubs = stubs_as(owned.owner.channel, owned.owner.name)
        listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        request.turn_id = listed.turns[0].turn_id
    return request


async def last_event(served: Served, session_id: str) -> int:
    """Returns the number of the session's last event; 0 if it is deleted."""
    async with served.owner(UDO) as udo:
        got = await udo.call("GetSession", session_pb2.GetSessionRequest(session_id=session_id))
    assert got.status in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    return session_pb2.GetSessionResponse.FromString(got.content).session.last_sequence if not got.message else 0


def snake(method: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


@pytest.mark.parametrize("method", OPERATORS)
async def test_what_an_operator_changes_in_anothers_session_is_on_record(served: Served, method: str) -> None:
    async with served.owner(ANNA) as anna, served.owner(OLGA) as olga:
        owned = await build(anna)
        request = await request_of(method, owned)
        named = dict(ids_in(request))
        session = named.get("session_id", owned.ids["session_id"])
        if method in BEFORE:
            name, kind = BEFORE[method]
            assert (await anna.call(name, kind(session_id=session))).status is grpc.StatusCode.OK
        before = await last_event(served, session)
        answer = await olga.call(method, request)
        again = await olga.call(method, request)
        records = await served.records(session)
        after = await last_event(served, session)
    if answer.status is grpc.StatusCode.UNIMPLEMENTED:
        return
    assert (answer.status, again.status) == (grpc.StatusCode.OK, grpc.StatusCode.OK), (answer, again)
    if method not in CHANGES:
        assert (records, after) == ([], before)
        return
    assert after != before
    response: Any = GetMessageClass(METHODS[method].output_type).FromString(answer.content)
    (record,) = records
    assert (record["action"], record["principal"], record["credential_id"]) == (
        snake(method),
        "olga",
        f"{ISSUER} {OLGA}",
    )
    assert (record["sequence"], record["outcome"]) == (response.sequence, "OK")
    assert record["target"] == named.get("turn_id", session)
    assert record["details"] == {"owner": "anna"}


async def test_what_operators_do_in_their_own_sessions_is_not_the_operators(served: Served) -> None:
    async with served.as_(OTTO) as otto:
        session = await harness.create_test_session(otto, agent="talker", session_id="ottos")
        await otto.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
        await otto.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
    assert await served.records(session) == []


@pytest.mark.parametrize("by", ["CancelTurn", "CancelTurns"])
async def test_a_cancellation_that_the_turns_owner_carries_out_is_on_record_with_its_event(
    served: Served, tool_control: ToolControl, by: str
) -> None:
    session = f"runs-{by}"
    async with served.as_(ANNA) as anna, served.as_(OLGA, x_request_id=f"stop-{by}") as olga:
        await harness.create_test_session(anna, agent="worker", session_id=session)
        turn = await harness.send_message_to_session(anna, session, f"run {session}", wait=0)
        await tool_control.started(session)
        if by == "CancelTurn":
            cancel = chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)
            assert (await olga.chat.CancelTurn(cancel)).turn.state == chat_pb2.TURN_STATE_CANCELLED
        else:
            filter_ = operator_pb2.TurnFilter(session_id=session)
            done = await olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=filter_, expected_count=1))
            assert done.requested == 1
            await harness.wait_for_turn(anna, session, turn.turn_id)
        with contextlib.suppress(aio.AioRpcError):  # ended by now; the owner's own request changes nothing
            await anna.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        (event,) = [event for event in await harness.all_events(anna, session) if event.HasField("turn_cancelled")]
    assert event.turn_cancelled.principal == "olga"
    (record,) = await served.records(session)
    assert (record["action"], record["target"], record["sequence"]) == ("cancel_turn", turn.turn_id, event.sequence)
    assert (record["principal"], record["request_id"]) == ("olga", f"stop-{by}")


async def test_a_message_that_interrupts_does_not_take_an_operators_cancellation_off_the_record(
    served: Served, tool_control: ToolControl
) -> None:
    session = "interrupted"
    async with served.as_(ANNA) as anna, served.as_(OLGA) as olga:
        await harness.create_test_session(anna, agent="worker", session_id=session)
        turn = await harness.send_message_to_session(anna, session, f"run {session}", wait=0)
        await tool_control.started(session)
        filter_ = operator_pb2.TurnFilter(session_id=session)
        await olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=filter_, expected_count=1))
        await harness.send_message_to_session(anna, session, "hello", if_busy=chat_pb2.IF_BUSY_INTERRUPT)
    (record,) = await served.records(session)
    assert record["target"] == turn.turn_id


async def test_a_freeze_refuses_what_makes_sessions_and_turns_and_nothing_else(served: Served) -> None:
    async with served.owner(ANNA) as anna, served.as_(OLGA) as olga:
        owned = await build(anna)
        stubs = stubs_as(anna.channel, anna.name)
        fork = session_pb2.ForkSessionRequest(session_id=owned.ids["session_id"], request_id="before the freeze")
        forked = (await stubs.sessions.ForkSession(fork)).session.session_id
        requests = {
            method: await request_of(method, owned)
            for (service, method), access in AccessRules(OUR_FILES).by_method.items()
            if not access.roles.isdisjoint((AccessRole.CALLER, AccessRole.APPROVER)) and "Agent" not in service
        }
        await olga.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="a sweep"))
        try:
            assert (await stubs.sessions.ForkSession(fork)).session.session_id == forked
            with refused("SESSION_NOT_FOUND"):
                await stubs.sessions.ForkSession(session_pb2.ForkSessionRequest(session_id="none", request_id="r"))
            with refused("SESSION_ALREADY_EXISTS"):
                taken = session_pb2.ForkSessionRequest(session_id=forked, request_id="r", new_session_id=forked)
                await stubs.sessions.ForkSession(taken)
            outcomes = {}
            for method in sorted(requests, key=lambda name: (name in LAST and LAST.index(name) + 1, name)):
                outcomes[method] = await anna.call(method, requests[method])
        finally:
            await olga.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest())
        assert (
            await anna.call("ForkSession", session_pb2.ForkSessionRequest(session_id=forked, request_id="r"))
        ).status is (grpc.StatusCode.OK)
    frozen = {method for method, outcome in outcomes.items() if b"ADMISSION_FROZEN" in outcome.content}
    assert frozen == NEW_WORK
    others = {method: outcome for method, outcome in outcomes.items() if method not in NEW_WORK}
    assert {
        method: outcome
        for method, outcome in others.items()
        if outcome.status not in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED)
    } == {}


async def test_a_freeze_that_cannot_be_read_does_not_keep_the_call_at_work(served: Served) -> None:
    """Another version may have stored it, or a hand."""
    unreadable = {"_id": {"tenant": "acme", "agent": "odd"}, "tenant": "acme", "agent": "odd"}
    await served.database["freezes"].insert_one(unreadable)
    async with served.as_(OLGA) as olga:
        freeze = operator_pb2.FreezeAdmissionRequest(agent="odd", reason="r")
        with refused("SERVICE_UNAVAILABLE"):
            await olga.operator.FreezeAdmission(freeze, timeout=10)
        unfreeze = operator_pb2.UnfreezeAdmissionRequest(agent="odd")
        assert (await olga.operator.UnfreezeAdmission(unfreeze)).unfrozen


async def test_a_tenant_has_so_many_freezes_and_no_more(served: Served) -> None:
    async with served.as_(OLGA) as olga:
        first = operator_pb2.FreezeAdmissionRequest(agent="a-0", reason="r")
        await olga.operator.FreezeAdmission(first)
        stored = await served.database["freezes"].find_one({"agent": "a-0"})
        assert stored is not None
        names = [f"a-{number}" for number in range(1, MOST_FREEZES)]
        await served.database["freezes"].insert_many(
            [{**stored, "_id": {**stored["_id"], "agent": name}, "agent": name} for name in names]
        )
        with refused("QUOTA_EXCEEDED") as refusal:
            await olga.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="r"))
        assert refusal.details.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        await olga.operator.FreezeAdmission(first)
        await served.database["freezes"].delete_many({})
        await olga.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="r"))
        await olga.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest())
