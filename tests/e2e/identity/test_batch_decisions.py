"""BatchDecideApprovals: each decision by itself, with its own result, record and price. CountApprovals beside it."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.faults import held_up
from tests.identities import NamedCredentials, connect_as, row
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, audit_pb2, error_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^ask'
tool_calls = [{ name = "act", arguments = { label = "one" } }]

[[reply]]
text = "Done."
"""
ROWS = "".join(
    row(name, tenant=tenant, roles=roles)
    for name, tenant, roles in (
        ("anna", "acme", ["caller"]),
        ("bert", "acme", ["approver"]),
        ("auditor", "acme", ["auditor"]),
        ("gina", "globex", ["caller", "approver"]),
        ("lena", "limited", ["caller"]),
        ("leo", "limited", ["approver"]),
    )
)
LIMITS = """
profile = "open"
[profiles.open]
[profiles.slow.principal]
DecideApproval = { per_minute = 1, burst = 2 }
BatchDecideApprovals = { per_minute = 1, burst = 1 }
[tenants]
limited = "slow"
"""
APPROVE, REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
Decision = approval_pb2.DecideApprovalRequest
Result = approval_pb2.BatchDecideApprovalsResult


@dataclass(kw_only=True)
class Served:
    address: str
    mongo_uri: str

    def as_(self, name: str, **metadata: str) -> contextlib.AbstractAsyncContextManager[Any]:
        return connect_as(self.address, name, **metadata)

    async def requested(self, count: int, *, by: str = "acme/anna") -> list[approval_pb2.Approval]:
        """Returns approvals that wait, each in a session of its own."""
        async with self.as_(by) as stubs:
            sessions = [await harness.create_test_session(stubs, agent="asker") for _ in range(count)]
            await asyncio.gather(*(harness.send_message_to_session(stubs, session, "ask") for session in sessions))
            return [await harness.wait_for_approval(stubs, session) for session in sessions]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, tool_control: ToolControl, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    folder: Path = tmp_path_factory.mktemp("batches")
    principals, limits = folder / "principals.toml", folder / "limits.toml"
    principals.write_text(ROWS)
    limits.write_text(LIMITS)
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    chosen: dict[str, Any] = {"agents": AGENTS, "principals": principals, "limits": limits}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database, model, authenticator=NamedCredentials(), **chosen) as running,
    ):
        yield Served(address=running.address, mongo_uri=mongo_uri)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


def on(approval: approval_pb2.Approval, decision: Any = APPROVE, **fields: Any) -> Decision:
    given = {"arguments_hash": approval.arguments_hash, **fields}
    return Decision(approval_id=approval.approval_id, decision=decision, **given)


async def batch(stubs: Any, *decisions: Decision, timeout: float | None = None) -> Sequence[Result]:
    request = approval_pb2.BatchDecideApprovalsRequest(decisions=decisions)
    response = await stubs.approvals.BatchDecideApprovals(request, timeout=timeout)
    assert len(response.results) == len(decisions)
    results: Sequence[Result] = response.results
    return results


def codes(results: Sequence[Result]) -> list[str]:
    """Returns the code of each result, `OK` for a decision."""
    for result in results:
        assert result.HasField("approval") != result.HasField("error")
    names = [error_pb2.SessionErrorCode.Name(result.error.code) for result in results]
    return ["OK" if result.HasField("approval") else name[19:] for result, name in zip(results, names, strict=True)]


async def test_each_decision_has_its_own_result(served: Served) -> None:
    one, two, three, decided = await served.requested(4)
    foreign = (await served.requested(1, by="globex/gina"))[0]
    async with served.as_("acme/bert") as bert:
        await harness.decide(bert, decided, approve=False)
        results = await batch(
            bert,
            on(one),
            on(two, REJECT, reason="no"),
            on(three, arguments_hash="another"),
            on(decided),
            on(foreign),
            Decision(approval_id="none", decision=APPROVE, arguments_hash="x"),
            on(three, edited_arguments_json="{"),
            Decision(approval_id=three.approval_id),
            on(three, event_pb2.APPROVAL_DECISION_GIVE_UP),
        )
        assert codes(results) == [
            "OK",
            "OK",
            "ARGUMENTS_HASH_MISMATCH",
            "APPROVAL_ALREADY_PROCESSED",
            "APPROVAL_NOT_FOUND",
            "APPROVAL_NOT_FOUND",
            "TOOL_VALIDATION_ERROR",
            "INVALID_REQUEST",
            "INVALID_REQUEST",
        ]
        assert [result.approval.state for result in results[:2]] == [
            approval_pb2.APPROVAL_STATE_APPROVED,
            approval_pb2.APPROVAL_STATE_REJECTED,
        ]
        assert results[0].sequence > 0
        assert results[2].error.metadata["arguments_hash"] == three.arguments_hash
        assert results[3].error.metadata["state"] == "REJECTED"
        again = await batch(bert, on(one), on(two, REJECT, reason="no"), on(three))
        assert codes(again) == ["OK", "OK", "OK"]
        assert [result.sequence for result in again[:2]] == [result.sequence for result in results[:2]]


async def test_each_decision_is_on_record_with_the_calls_id(served: Served) -> None:
    approvals = await served.requested(3)
    async with served.as_("acme/bert", x_request_id="batch-1") as bert:
        assert codes(await batch(bert, *map(on, approvals))) == ["OK"] * 3
    async with served.as_("acme/auditor") as auditor:
        responses = auditor.audit.ExportAudit(audit_pb2.ExportAuditRequest())
        lines = b"".join([response.lines async for response in responses]).splitlines()
    records = [json.loads(parsed["record"]["text"]) for line in lines if "record" in (parsed := json.loads(line))]
    mine = [record for record in records if record["request_id"] == "batch-1"]
    assert {record["target"] for record in mine} == {approval.approval_id for approval in approvals}
    assert {(record["action"], record["principal"]) for record in mine} == {("decide_approval", "bert")}


async def test_each_decision_costs_what_a_call_of_its_own_costs(served: Served) -> None:
    approvals = await served.requested(4, by="limited/lena")
    async with served.as_("limited/leo") as leo:
        results = await batch(leo, *map(on, approvals))
        assert sorted(codes(results)) == ["OK", "OK", "RATE_LIMIT_EXCEEDED", "RATE_LIMIT_EXCEEDED"]
        limited = next(result.error for result in results if result.HasField("error"))
        assert limited.metadata["limit"] == "DecideApproval"
        assert limited.retry_after.seconds > 0
        done = next(
            approval for approval, result in zip(approvals, results, strict=True) if result.HasField("approval")
        )
        with refused("RATE_LIMIT_EXCEEDED"):
            await leo.approvals.DecideApproval(on(done))


async def test_what_the_deadline_leaves_undone_may_be_sent_again(served: Served) -> None:
    approvals = await served.requested(20)
    async with served.as_("acme/bert") as bert:
        async with held_up(served.mongo_uri, "commitTransaction", by=timedelta(seconds=3)) as held:
            sending = asyncio.create_task(batch(bert, *map(on, approvals), timeout=2.0))
            await held.entered()
            results = await sending
        assert "SERVICE_UNAVAILABLE" in codes(results)
        assert set(codes(results)) <= {"OK", "SERVICE_UNAVAILABLE"}
        undone = next(result.error for result in results if result.HasField("error"))
        assert undone.retry == error_pb2.RETRY_ADVICE_SAME_CALL
        assert codes(await batch(bert, *map(on, approvals))) == ["OK"] * 20


async def test_too_many_decisions_and_none_are_refused(served: Served) -> None:
    async with served.as_("acme/bert") as bert:
        for count in (0, 101):
            with refused("INVALID_REQUEST") as refusal:
                await batch(bert, *[Decision(approval_id="a", decision=APPROVE, arguments_hash="x")] * count)
            assert list(refusal.details.fields) == ["decisions"]


async def test_approvals_are_counted_as_they_are_listed(served: Served) -> None:
    mine = await served.requested(3)
    async with served.as_("acme/bert") as bert, served.as_("globex/gina") as gina, served.as_("acme/anna") as anna:

        async def counted(stubs: Any, **where: Any) -> int:
            response = await stubs.approvals.CountApprovals(approval_pb2.CountApprovalsRequest(**where))
            assert not response.more
            return int(response.count)

        async def listed(stubs: Any, **where: Any) -> int:
            response = await stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(page_size=100, **where))
            assert not response.next_page_token
            return len(response.approvals)

        for where in ({}, {"states": ["APPROVAL_STATE_PENDING"]}, {"requester": "anna"}, {"requester": "bert"}):
            for stubs in (bert, anna, gina):
                assert await counted(stubs, **where) == await listed(stubs, **where)
        assert await counted(bert, session_id=mine[0].session_id) == 1
        assert await counted(gina, session_id=mine[0].session_id) == 0
        before = await counted(bert, states=["APPROVAL_STATE_PENDING"])
        await harness.decide(bert, mine[0])
        assert await counted(bert, states=["APPROVAL_STATE_PENDING"]) == before - 1
