"""The operator's calls on the wire: what runs, its cancellation by number, freezes on every replica, replicas."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, connect_as, row
from tests.status_details import details_of, refused
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import audit_pb2, chat_pb2, operator_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
AWAITING = chat_pb2.TURN_STATE_AWAITING_APPROVAL
ROWS = "".join(
    row(name, tenant=tenant, roles=roles)
    for tenant, name, roles in (
        ("acme", "anna", ["caller", "approver"]),
        ("acme", "olga", ["operator", "auditor"]),
        ("other", "zoe", ["caller", "operator"]),
        ("ops", "root", ["platform", "auditor"]),
    )
)
OLGA, ANNA, ZOE, ROOT = "acme/olga", "acme/anna", "other/zoe", "ops/root"


@dataclass(kw_only=True)
class Served:
    mongo_uri: str
    database: str
    model: ScriptedModel
    principals: Path
    address: str

    def as_(self, name: str, address: str = "", **metadata: str) -> contextlib.AbstractAsyncContextManager[Any]:
        return connect_as(address or self.address, name, **metadata)

    @contextlib.asynccontextmanager
    async def another(self) -> AsyncIterator[str]:
        """Starts another replica. Yields its address."""
        async with serving(self) as running:
            yield running

    async def wait(self, label: str, *, by: str = ANNA, agent: str = "asker") -> str:
        """Starts a turn that waits for an approval. Returns its session."""
        async with self.as_(by) as stubs:
            session = await harness.create_test_session(stubs, agent=agent, session_id=label)
            turn = await harness.send_message_to_session(stubs, session, f"do {label}")
            assert turn.state == AWAITING
        return session

    async def records(self, action: str, name: str = OLGA, **fields: Any) -> list[dict[str, Any]]:
        async with self.as_(name) as stubs:
            responses = stubs.audit.ExportAudit(audit_pb2.ExportAuditRequest(**fields))
            lines = b"".join([response.lines async for response in responses]).splitlines()
        texts = [json.loads(json.loads(line)["record"]["text"]) for line in lines if line.startswith(b'{"record')]
        return [record for record in texts if record["action"] == action]


@contextlib.asynccontextmanager
async def serving(served: Served) -> AsyncIterator[str]:
    async with harness.serving(
        served.mongo_uri,
        served.database,
        served.model,
        agents=AGENTS,
        authenticator=NamedCredentials(),
        principals=served.principals,
    ) as running:
        yield running.address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, tool_control: ToolControl, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    principals = tmp_path_factory.mktemp("operator") / "principals.toml"
    principals.write_text(ROWS)
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with harness.scripted(SCRIPT) as model:
        served = Served(mongo_uri=mongo_uri, database=database, model=model, principals=principals, address="")
        async with serving(served) as served.address:
            yield served
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


def filter_(**fields: Any) -> operator_pb2.TurnFilter:
    return operator_pb2.TurnFilter(**fields)


async def active(served: Served, name: str = OLGA, tenant: str = "", **fields: Any) -> list[operator_pb2.ActiveTurn]:
    async with served.as_(name) as stubs:
        request = operator_pb2.ListActiveTurnsRequest(tenant=tenant, filter=filter_(**fields), page_size=1)
        turns: list[operator_pb2.ActiveTurn] = []
        while True:
            page = await stubs.operator.ListActiveTurns(request)
            turns += page.turns
            request.page_token = page.next_page_token
            if not request.page_token:
                return turns


class TestActiveTurns:
    async def test_what_waits_and_what_is_queued_is_listed(self, served: Served) -> None:
        session = await served.wait("listed")
        async with served.as_(ANNA) as anna:
            await harness.send_message_to_session(anna, session, "later", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        first, second = await active(served, session_id=session)
        assert (first.session_id, first.agent, first.principal, first.state) == (session, "asker", "anna", AWAITING)
        assert (list(first.tools), first.usage.input_tokens > 0) == (["act"], True)
        assert first.age.ToTimedelta() < timedelta(seconds=30)
        assert (second.state, list(second.tools)) == (chat_pb2.TURN_STATE_PENDING, [])
        (by_tool,) = await active(served, session_id=session, tool="act")
        assert by_tool.turn_id == first.turn_id
        assert await active(served, session_id=session, min_age=Duration(seconds=3600)) == []
        assert await active(served, session_id=session, agent="worker") == []
        (by_state,) = await active(served, session_id=session, states=[AWAITING])
        assert by_state.turn_id == first.turn_id

    async def test_a_tenants_turns_are_its_operators_and_the_platforms(self, served: Served) -> None:
        session = await served.wait("foreign", by=ZOE)
        assert session not in {turn.session_id for turn in await active(served)}
        assert session in {turn.session_id for turn in await active(served, ZOE)}
        assert session in {turn.session_id for turn in await active(served, ROOT, tenant="other")}


class TestCancelTurns:
    async def test_as_many_as_expected_are_cancelled_and_that_is_on_record(self, served: Served) -> None:
        sessions = [await served.wait(f"cancel-{number}", agent="asker") for number in range(3)]
        async with served.as_(ANNA) as anna:
            await harness.send_message_to_session(anna, sessions[0], "x", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        matching = filter_(session_id=sessions[0])
        async with served.as_(OLGA, x_request_id="stop-1") as olga:
            with refused("TURN_COUNT_MISMATCH") as refusal:
                await olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=matching, expected_count=1))
            assert refusal.details.status is grpc.StatusCode.FAILED_PRECONDITION
            assert refusal.details.metadata == {"count": "2", "expected_count": "1"}
            with refused("TURN_COUNT_MISMATCH") as refusal:
                await olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=matching, expected_count=3))
            assert refusal.details.metadata["count"] == "2"
            assert await served.records("cancel_turns") == []
            done = await olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=matching, expected_count=2))
        assert (done.cancelled, done.requested, done.ended, done.failed) == (2, 0, 0, 0)
        assert await active(served, session_id=sessions[0]) == []
        assert len(await active(served, session_id=sessions[1])) == 1
        (record,) = await served.records("cancel_turns")
        assert (record["principal"], record["request_id"], record["outcome"]) == ("olga", "stop-1", "ORDERED")
        assert (record["details"]["count"], record["details"]["filter.session_id"]) == ("2", sessions[0])
        async with served.as_(ANNA) as anna:
            events = await harness.all_events(anna, sessions[0])
        cancelled = [event.turn_cancelled.principal for event in events if event.HasField("turn_cancelled")]
        assert cancelled == ["olga", "olga"]

    async def test_a_turn_that_runs_is_cancelled_by_its_owner(self, served: Served, tool_control: ToolControl) -> None:
        async with served.as_(ANNA) as anna, served.as_(OLGA) as olga:
            session = await harness.create_test_session(anna, agent="asker", session_id="runs")
            turn = await harness.send_message_to_session(anna, session, "do runs")
            approval = await harness.wait_for_approval(anna, session)
            await harness.decide(anna, approval)
            request = operator_pb2.CancelTurnsRequest(filter=filter_(session_id=session), expected_count=1)
            with contextlib.suppress(grpc.aio.AioRpcError):  # it may have ended
                done = await olga.operator.CancelTurns(request)
                assert done.cancelled + done.requested + done.ended == 1
            ended = await harness.wait_for_turn(anna, session, turn.turn_id)
        assert ended.state in (chat_pb2.TURN_STATE_CANCELLED, chat_pb2.TURN_STATE_COMPLETED)


def a_new_session() -> session_pb2.CreateSessionRequest:
    return session_pb2.CreateSessionRequest(agent="asker", request_id=harness.new_request_id())


async def is_refused(method: Any, request: Any) -> bool:
    """Returns True if the call is refused because of a freeze, False if it is not refused."""
    try:
        await method(request)
    except grpc.aio.AioRpcError as error:
        details = details_of(error)
        assert (details.reason, details.status) == ("ADMISSION_FROZEN", grpc.StatusCode.UNAVAILABLE)
        assert details.retry_after == timedelta(seconds=30)
        return True
    return False


class TestFreezes:
    async def test_new_work_is_refused_on_every_replica_and_what_was_accepted_goes_on(self, served: Served) -> None:
        async with served.another() as other:
            session = await served.wait("frozen")
            message = chat_pb2.SendMessageRequest(
                session_id=session,
                request_id="sent-before",
                if_busy=chat_pb2.IF_BUSY_ENQUEUE,
                content=harness.text_parts("queued"),
                wait=Duration(seconds=0),
            )
            async with (
                served.as_(ANNA) as anna,
                served.as_(ANNA, other) as anna_there,
                served.as_(OLGA, x_request_id="freeze-1") as olga,
                served.as_(ZOE, other) as zoe,
            ):
                queued = await anna.chat.SendMessage(message)
                created = await anna.sessions.CreateSession(
                    session_pb2.CreateSessionRequest(agent="asker", request_id="before")
                )
                frozen = await olga.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="an incident"))
                began = time.monotonic()
                assert await is_refused(anna.sessions.CreateSession, a_new_session())

                async def refused_there() -> bool:
                    return await is_refused(anna_there.sessions.CreateSession, a_new_session())

                await until(refused_there, within=2.0)
                assert time.monotonic() - began < 2.0
                again = await olga.operator.FreezeAdmission(operator_pb2.FreezeAdmissionRequest(reason="once more"))
                assert again.freeze == frozen.freeze
                assert (frozen.freeze.principal, frozen.freeze.reason) == ("olga", "an incident")
                assert list((await olga.operator.ListFreezes(operator_pb2.ListFreezesRequest())).freezes) == [
                    frozen.freeze
                ]

                fresh = chat_pb2.SendMessageRequest()
                fresh.CopyFrom(message)
                fresh.request_id = "sent-after"
                for stubs in (anna, anna_there):
                    assert await is_refused(stubs.chat.SendMessage, fresh)
                    first = chat_pb2.SendMessageRequest(
                        request_id="first",
                        content=harness.text_parts("hello"),
                        create_session=chat_pb2.CreateSessionParams(agent="asker"),
                    )
                    assert await is_refused(stubs.chat.SendMessage, first)
                    assert (await stubs.chat.SendMessage(message)).turn.turn_id == queued.turn.turn_id  # a repeat
                    repeated = await stubs.sessions.CreateSession(
                        session_pb2.CreateSessionRequest(agent="asker", request_id="before")
                    )
                    assert repeated.session.session_id == created.session.session_id
                await zoe.sessions.CreateSession(a_new_session())

                approval = await harness.wait_for_approval(anna_there, session)
                await harness.decide(anna_there, approval)
                ended = await harness.wait_for_turn(anna, session, queued.turn.turn_id)
                assert ended.state == chat_pb2.TURN_STATE_COMPLETED
                retry = chat_pb2.RetryTurnRequest(session_id=session, turn_id=queued.turn.turn_id, request_id="r")
                with refused("TURN_NOT_RETRYABLE"):
                    await anna.chat.RetryTurn(retry)

                unfrozen = await olga.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest())
                assert unfrozen.unfrozen
                assert not (await olga.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest())).unfrozen
                assert not await is_refused(anna.sessions.CreateSession, a_new_session())

                async def admitted_there() -> bool:
                    return not await refused_there()

                await until(admitted_there, within=2.0)
        froze = await served.records("freeze_admission")
        assert [record["outcome"] for record in froze] == ["FROZEN", "UNCHANGED"]
        assert {record["request_id"] for record in froze} == {"freeze-1"}
        ended_records = await served.records("unfreeze_admission")
        assert [record["outcome"] for record in ended_records] == ["UNFROZEN", "UNCHANGED"]

    async def test_a_failed_turn_is_not_retried_and_a_freeze_survives_a_restart(self, served: Served) -> None:
        session = await served.wait("cancelled")
        async with served.as_(ANNA) as anna, served.as_(ROOT) as root:
            (turn,) = (await anna.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
            await anna.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
            freeze = operator_pb2.FreezeAdmissionRequest(tenant="acme", agent="asker", reason="a test")
            assert (await root.operator.FreezeAdmission(freeze)).freeze.agent == "asker"
            async with served.as_(ZOE) as zoe:
                assert not (await zoe.operator.ListFreezes(operator_pb2.ListFreezesRequest())).freezes
                await zoe.sessions.CreateSession(a_new_session())
            retry = chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn.turn_id, request_id="again")
            assert await is_refused(anna.chat.RetryTurn, retry)
            async with served.another() as fresh, served.as_(ANNA, fresh) as there:
                assert await is_refused(there.sessions.CreateSession, a_new_session())
                await there.sessions.CreateSession(
                    session_pb2.CreateSessionRequest(agent="worker", request_id="other-agent")
                )
            await root.operator.UnfreezeAdmission(operator_pb2.UnfreezeAdmissionRequest(tenant="acme", agent="asker"))
            await anna.chat.RetryTurn(retry)
        (record,) = [
            record
            for record in await served.records("freeze_admission", ROOT, tenant="acme")
            if record["details"]["agent"] == "asker"
        ]
        assert (record["tenant"], record["principal"]) == ("acme", "root")


class TestReplicas:
    async def test_the_platform_lists_them(self, served: Served) -> None:
        async with served.as_(ROOT) as root, served.another():

            async def two_are_alive() -> bool:
                replicas = (await root.operator.ListReplicas(operator_pb2.ListReplicasRequest())).replicas
                return len([replica for replica in replicas if replica.alive]) == 2

            await until(two_are_alive)


@pytest.mark.parametrize(
    ("name", "method", "request_", "code"),
    [
        (ANNA, "ListActiveTurns", operator_pb2.ListActiveTurnsRequest(), "PERMISSION_DENIED"),
        (ANNA, "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(reason="r"), "PERMISSION_DENIED"),
        (OLGA, "ListReplicas", operator_pb2.ListReplicasRequest(), "PERMISSION_DENIED"),
        (OLGA, "ListActiveTurns", operator_pb2.ListActiveTurnsRequest(tenant="other"), "PERMISSION_DENIED"),
        (OLGA, "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(tenant="other", reason="r"), "PERMISSION_DENIED"),
        (OLGA, "UnfreezeAdmission", operator_pb2.UnfreezeAdmissionRequest(tenant="other"), "PERMISSION_DENIED"),
        (OLGA, "ListFreezes", operator_pb2.ListFreezesRequest(tenant="other"), "PERMISSION_DENIED"),
        (
            OLGA,
            "CancelTurns",
            operator_pb2.CancelTurnsRequest(tenant="other", filter=filter_(), expected_count=1),
            "PERMISSION_DENIED",
        ),
        (ROOT, "ListActiveTurns", operator_pb2.ListActiveTurnsRequest(tenant="a b"), "INVALID_REQUEST"),
        (OLGA, "CancelTurns", operator_pb2.CancelTurnsRequest(expected_count=1), "INVALID_REQUEST"),
        (OLGA, "CancelTurns", operator_pb2.CancelTurnsRequest(filter=filter_()), "INVALID_REQUEST"),
        (OLGA, "CancelTurns", operator_pb2.CancelTurnsRequest(filter=filter_(), expected_count=-1), "INVALID_REQUEST"),
        (
            OLGA,
            "CancelTurns",
            operator_pb2.CancelTurnsRequest(filter=filter_(), expected_count=10_001),
            "INVALID_REQUEST",
        ),
        (
            OLGA,
            "ListActiveTurns",
            operator_pb2.ListActiveTurnsRequest(filter=filter_(states=[chat_pb2.TURN_STATE_FAILED])),
            "INVALID_REQUEST",
        ),
        (
            OLGA,
            "ListActiveTurns",
            operator_pb2.ListActiveTurnsRequest(filter=filter_(min_age=Duration(seconds=-1))),
            "INVALID_REQUEST",
        ),
        (OLGA, "ListActiveTurns", operator_pb2.ListActiveTurnsRequest(page_token="none"), "PAGE_TOKEN_INVALID"),
        (OLGA, "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(reason="x" * 1001), "INVALID_REQUEST"),
        (OLGA, "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(agent="x" * 65, reason="r"), "INVALID_REQUEST"),
        (OLGA, "FreezeAdmission", operator_pb2.FreezeAdmissionRequest(), "INVALID_REQUEST"),
    ],
)
async def test_bad_calls_are_refused(served: Served, name: str, method: str, request_: Any, code: str) -> None:
    status = {
        "PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED,
        "INVALID_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    }[code]
    async with served.as_(name) as stubs:
        with refused(code) as refusal:
            await getattr(stubs.operator, method)(request_)
    assert refusal.details.status is status


async def test_two_cancellations_at_once_cancel_each_turn_once(served: Served) -> None:
    session = await served.wait("twice")
    request = operator_pb2.CancelTurnsRequest(filter=filter_(session_id=session), expected_count=1)
    async with served.as_(OLGA) as olga:
        results = await asyncio.gather(*(olga.operator.CancelTurns(request) for _ in range(3)), return_exceptions=True)
    done = [result for result in results if not isinstance(result, BaseException)]
    assert done
    assert all(result.failed == 0 for result in done)
    async with served.as_(ANNA) as anna:
        events = await harness.all_events(anna, session)
    assert sum(event.HasField("turn_cancelled") for event in events) == 1
