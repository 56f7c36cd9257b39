"""The audit trail on the wire: who decided what, on whose behalf; what was refused; exports that can be checked."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pymongo import AsyncMongoClient

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, connect_as, row
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper import cannot_start
from turnkeeper.command_line import main
from turnkeeper.pb.v1 import approval_pb2, audit_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
ROWS = "".join(
    (
        row("anna", tenant="acme", roles=["caller"]),
        row("bert", tenant="acme", roles=["approver"]),
        row("auditor", tenant="acme", roles=["auditor"]),
        row("portal", tenant="acme", roles=["delegate"]),
        row("zoe", tenant="other", roles=["caller", "auditor"]),
        row("root", tenant="ops", roles=["platform"]),
    )
)


@dataclass(kw_only=True)
class Served:
    address: str
    folder: Path
    mongo_uri: str
    database: str

    def as_(self, name: str, **metadata: str) -> contextlib.AbstractAsyncContextManager[Any]:
        return connect_as(self.address, name, **metadata)

    @contextlib.asynccontextmanager
    async def pending(self, label: str) -> AsyncIterator[approval_pb2.Approval]:
        """Yields an approval that waits, of a session of anna's."""
        async with self.as_("acme/anna") as anna:
            session = await harness.create_test_session(anna, agent="asker", session_id=label)
            await harness.send_message_to_session(anna, session, f"do {label}")
            yield await harness.wait_for_approval(anna, session)

    async def export(self, name: str = "acme/auditor", **fields: Any) -> list[dict[str, Any]]:
        async with self.as_(name) as stubs:
            responses = stubs.audit.ExportAudit(audit_pb2.ExportAuditRequest(**fields))
            lines = b"".join([response.lines async for response in responses]).splitlines()
        (self.folder / "export.jsonl").write_bytes(b"\n".join(lines))
        return [json.loads(line) for line in lines]

    async def records(self, name: str = "acme/auditor", **fields: Any) -> list[dict[str, Any]]:
        lines = await self.export(name, **fields)
        return [json.loads(line["record"]["text"]) for line in lines if "record" in line]

    async def sealed(self, is_there: Callable[[dict[str, Any]], bool], within: float = 5.0, **fields: Any) -> None:
        """Waits until the record is there and all records have a seal."""

        async def done() -> bool:
            name = "ops/root" if fields else "acme/auditor"
            lines = await self.export(name, **fields)
            texts = [json.loads(line["record"]["text"]) for line in lines if "record" in line]
            return any(map(is_there, texts)) and lines[-1]["end"]["unsealed"] == 0

        await until(done, within=within)

    async def verify(self, *arguments: str) -> int:
        command = ["audit", "verify", *arguments, "--public-key", str(self.folder / "audit.pub")]
        return await asyncio.to_thread(main, command)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, tool_control: ToolControl, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("audit")
    key = Ed25519PrivateKey.generate()
    (folder / "audit.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "audit.pub").write_bytes(public)
    (folder / "principals.toml").write_text(ROWS)
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri,
            database,
            model,
            agents=AGENTS,
            authenticator=NamedCredentials(),
            principals=folder / "principals.toml",
            audit_key=folder / "audit.pem",
        ) as running,
    ):
        yield Served(address=running.address, folder=folder, mongo_uri=mongo_uri, database=database)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


async def test_a_decision_is_on_record_with_its_event_and_sealed_within_five_seconds(served: Served) -> None:
    async with served.pending("decided") as approval, served.as_("acme/bert", x_request_id="call-7") as bert:
        decided = await harness.decide(bert, approval)
        assert await harness.decide(bert, approval) == decided  # a repeat stores nothing
    await served.sealed(lambda record: record["target"] == approval.approval_id)
    (record,) = [record for record in await served.records() if record["target"] == approval.approval_id]
    assert record["id"].startswith(f"decided/{decided.sequence}/")
    assert record["details"].pop("turn_id") == approval.turn_id
    assert record["details"].pop("tool_call_id") == approval.tool_call_id
    assert record == {
        "tenant": "acme",
        "session_id": "decided",
        "sequence": decided.sequence,
        "action": "decide_approval",
        "target": approval.approval_id,
        "outcome": "APPROVED",
        "principal": "bert",
        "credential_id": "acme/bert",
        "on_behalf_of": "",
        "request_id": "call-7",
        "details": {
            "decision": "APPROVE",
            "decided_by": "bert",
            "tool": "act",
            "arguments_hash": approval.arguments_hash,
            "round": "1",
            "votes": "1 of 1",
        },
    } | {name: record[name] for name in ("id", "at")}


async def test_a_delegates_decision_names_both(served: Served) -> None:
    long = "x" * 129
    async with (
        served.pending("delegated") as approval,
        served.as_("acme/portal", turnkeeper_on_behalf_of="bert", x_request_id=long) as portal,
    ):
        await harness.decide(portal, approval, approve=False, reason="no")
    (record,) = [record for record in await served.records() if record["target"] == approval.approval_id]
    assert (record["principal"], record["credential_id"], record["on_behalf_of"]) == ("portal", "acme/portal", "bert")
    assert (record["outcome"], record["request_id"]) == ("REJECTED", "")


async def test_an_edited_decision_is_on_record_as_what_was_approved(served: Served) -> None:
    async with served.pending("edited") as approval, served.as_("acme/bert") as bert:
        request = approval_pb2.DecideApprovalRequest(
            approval_id=approval.approval_id,
            decision=event_pb2.APPROVAL_DECISION_APPROVE,
            arguments_hash=approval.arguments_hash,
            edited_arguments_json='{"label":"changed"}',
        )
        decided = (await bert.approvals.DecideApproval(request)).approval
    (record,) = [record for record in await served.records() if record["session_id"] == "edited"]
    assert record["target"] == decided.approval_id
    assert (record["details"]["arguments_hash"], record["details"]["round"]) == (decided.arguments_hash, "2")


async def test_each_approval_that_a_message_withdraws_is_on_record(served: Served) -> None:
    async with (
        served.pending("withdrawn") as approval,
        served.as_("acme/anna", x_request_id="message-2") as anna,
    ):
        await harness.send_message_to_session(
            anna, "withdrawn", "hello", if_busy=chat_pb2.IF_BUSY_WITHDRAW_PENDING, request_id="m2"
        )
        await harness.send_message_to_session(  # a repeat stores nothing
            anna, "withdrawn", "hello", if_busy=chat_pb2.IF_BUSY_WITHDRAW_PENDING, request_id="m2"
        )
        events = await harness.all_events(anna, "withdrawn")
    (event,) = [event for event in events if event.HasField("approval_withdrawn")]
    (record,) = [record for record in await served.records() if record["session_id"] == "withdrawn"]
    assert (record["action"], record["target"], record["outcome"], record["sequence"]) == (
        "withdraw_approval",
        approval.approval_id,
        "WITHDRAWN",
        event.sequence,
    )
    assert (record["principal"], record["request_id"]) == ("anna", "message-2")
    assert record["details"]["arguments_hash"] == approval.arguments_hash


async def test_the_agents_that_were_loaded_are_on_record_of_the_service(served: Served) -> None:
    records = await served.records("ops/root", service=True)
    loaded = [record for record in records if record["action"] == "load_agents"]
    assert len(loaded) == 1
    assert any(agent.startswith("asker@") for agent in loaded[0]["details"]["agents"].split())


async def test_refused_calls_are_sampled_once_a_second(served: Served) -> None:
    async with served.as_("acme/bert") as bert, served.as_("acme/eve") as eve:
        for _ in range(20):
            with refused("PERMISSION_DENIED"):
                await bert.sessions.CreateSession(session_pb2.CreateSessionRequest(agent="asker", session_id="no"))
        with refused("PRINCIPAL_UNKNOWN"):
            await eve.sessions.ListSessions(session_pb2.ListSessionsRequest())
    async with harness.connect(served.address) as stubs:
        with refused("UNAUTHENTICATED"):
            await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    await served.sealed(lambda record: record["outcome"] == "UNAUTHENTICATED/MISSING", within=10.0, service=True)
    await served.sealed(lambda record: record["action"] == "refused", within=10.0)
    own = [record for record in await served.records() if record["action"] == "refused"]
    assert 1 <= len(own) <= 4
    assert {record["principal"] for record in own} == {"bert"}
    assert {record["target"] for record in own} == {"turnkeeper.v1.SessionService/CreateSession"}
    unknown = [record for record in await served.records("ops/root", service=True) if record["action"] == "refused"]
    assert {(record["outcome"], record["credential_id"]) for record in unknown} == {
        ("PRINCIPAL_UNKNOWN", "acme/eve"),
        ("UNAUTHENTICATED/MISSING", ""),
    }


async def test_an_export_is_checked_offline(served: Served) -> None:
    async with served.pending("exported") as approval, served.as_("acme/bert") as bert:
        await harness.decide(bert, approval)
    await served.sealed(lambda record: record["target"] == approval.approval_id)
    file = served.folder / "export.jsonl"
    assert await served.verify(str(file)) == 0
    file.write_bytes(file.read_bytes().replace(b"bert", b"anna"))
    assert await served.verify(str(file)) == 1
    assert await served.verify("--mongodb-uri", served.mongo_uri, "--database", served.database) == 0


async def test_a_sessions_export_has_its_events_and_proofs(served: Served) -> None:
    async with served.pending("proved") as approval, served.as_("acme/bert") as bert:
        await harness.decide(bert, approval)
    await served.sealed(lambda record: record["target"] == approval.approval_id)
    async with served.as_("acme/anna") as anna:
        events = await harness.all_events(anna, "proved")
        responses = anna.sessions.ExportSession(session_pb2.ExportSessionRequest(session_id="proved"))
        content = b"".join([response.lines async for response in responses])
    lines = [json.loads(line) for line in content.splitlines()]
    assert [int(line["event"]["sequence"]) for line in lines if "event" in line] == [
        *range(1, 1 + sum("event" in line for line in lines))
    ]
    assert sum("event" in line for line in lines) >= len(events)
    (audit,) = [line["audit"] for line in lines if "audit" in line]
    assert audit["proof"]["path"] is not None
    file = served.folder / "session.jsonl"
    file.write_bytes(content)
    assert await served.verify(str(file)) == 0
    file.write_bytes(content.replace(b"APPROVED", b"REJECTED"))
    assert await served.verify(str(file)) == 1


@pytest.mark.parametrize(
    ("name", "fields", "code", "status"),
    [
        ("acme/anna", {}, "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
        ("acme/bert", {}, "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
        ("acme/auditor", {"tenant": "other"}, "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
        ("acme/auditor", {"service": True}, "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED),
        ("ops/root", {"service": True, "tenant": "acme"}, "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT),
        ("acme/auditor", {"tenant": "a b"}, "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT),
        ("acme/auditor", {"after_seal": -1}, "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT),
        ("acme/auditor", {"after_seal": 2**63 - 1}, "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_bad_exports_are_refused(
    served: Served, name: str, fields: dict[str, Any], code: str, status: grpc.StatusCode
) -> None:
    with refused(code) as refusal:
        await served.export(name, **fields)
    assert refusal.details.status is status


async def test_a_tenants_trail_is_its_own(served: Served) -> None:
    async with served.pending("own") as approval, served.as_("acme/bert") as bert:
        await harness.decide(bert, approval)
    assert {record["tenant"] for record in await served.records()} == {"acme"}
    assert await served.records("other/zoe") == []
    assert {record["tenant"] for record in await served.records("ops/root", tenant="acme")} == {"acme"}
    async with served.as_("other/zoe") as zoe:
        with refused("SESSION_NOT_FOUND"):
            request = session_pb2.ExportSessionRequest(session_id="own")
            [response async for response in zoe.sessions.ExportSession(request)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        (b"no key", "is not a private key in PEM: make one with openssl genpkey -algorithm ed25519"),
    ],
)
async def test_a_server_with_an_unfit_key_does_not_start(
    mongo_uri: str, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    key = tmp_path / "audit.pem"
    if content is not None:
        key.write_bytes(content)
    async with harness.scripted(SCRIPT) as model:
        with pytest.raises(cannot_start.ERRORS, match=sentence):
            async with harness.serving(mongo_uri, "unused", model, agents=AGENTS, audit_key=key):
                pass
