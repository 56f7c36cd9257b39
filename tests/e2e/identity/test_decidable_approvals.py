"""`decidable_by`: what waits for a person, in lists, counts and the inbox; and who may give more time."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from pymongo import AsyncMongoClient

from tests import harness
from tests.identities import NamedCredentials, connect_as, row
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^ask'
tool_calls = [{ name = "act", arguments = { label = "one" } }]

[[reply]]
text = "Done."
"""
AGENTS = """
[[agent]]
name = "open"
tools = ["act"]
policy = [{ tool = "act", action = "approve", ttl = "1h" }]

[[agent]]
name = "finance"
tools = ["act"]
policy = [{ tool = "act", ttl = "1h", approve = { groups = ["finance"], k = 2 } }]
"""
BOTH = ["caller", "approver"]
ROWS = "".join(
    (
        row("anna", tenant="acme", roles=BOTH),
        row("bert", tenant="acme", roles=BOTH, groups=["finance"]),
        row("carl", tenant="acme", roles=BOTH, groups=["finance"]),
        row("dora", tenant="acme", roles=["approver"]),
        row("olga", tenant="acme", roles=["operator"]),
        row("cleo", tenant="acme", roles=["caller"]),
    )
)
PENDING = approval_pb2.APPROVAL_STATE_PENDING


@dataclass(kw_only=True)
class Served:
    address: str

    def as_(self, name: str) -> contextlib.AbstractAsyncContextManager[Any]:
        return connect_as(self.address, f"acme/{name}")

    async def requested(self, agent: str, *, by: str) -> approval_pb2.Approval:
        async with self.as_(by) as stubs:
            session = await harness.create_test_session(stubs, agent=agent)
            await harness.send_message_to_session(stubs, session, "ask")
            return await harness.wait_for_approval(stubs, session)

    async def waiting_for(self, who: str, *, asked_by: str = "") -> set[str]:
        """Returns what a list has for a person, after a count has as many."""
        async with self.as_(asked_by or who) as stubs:
            name = who if asked_by else "@me"
            request = approval_pb2.ListApprovalsRequest(decidable_by=name, page_size=100)
            listed = (await stubs.approvals.ListApprovals(request)).approvals
            count = await stubs.approvals.CountApprovals(approval_pb2.CountApprovalsRequest(decidable_by=name))
        assert count.count == len(listed)
        assert all(approval.state == PENDING for approval in listed)
        return {approval.approval_id for approval in listed}


@pytest_asyncio.fixture(loop_scope="module")
async def served(mongo_uri: str, tool_control: ToolControl, tmp_path: Path) -> AsyncIterator[Served]:
    principals, agents = tmp_path / "principals.toml", tmp_path / "agents.toml"
    principals.write_text(ROWS)
    agents.write_text(AGENTS)
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    chosen: dict[str, Any] = {"agents": agents, "principals": principals}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database, model, authenticator=NamedCredentials(), **chosen) as running,
    ):
        yield Served(address=running.address)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


async def test_what_waits_for_a_person_is_what_it_may_decide_and_has_not(served: Served) -> None:
    of_anna = await served.requested("open", by="anna")
    of_bert = await served.requested("finance", by="bert")
    of_finance = await served.requested("finance", by="cleo")
    one, two, three = (approval.approval_id for approval in (of_anna, of_bert, of_finance))
    assert await served.waiting_for("anna") == set()
    assert await served.waiting_for("bert") == {one, three}
    assert await served.waiting_for("carl") == {one, two, three}
    assert await served.waiting_for("dora") == {one}
    assert await served.waiting_for("cleo") == await served.waiting_for("olga") == set(), "they are no approvers"
    assert await served.waiting_for("bert", asked_by="olga") == {one, three}
    assert await served.waiting_for("cleo", asked_by="olga") == set()
    async with served.as_("bert") as bert:
        await harness.decide(bert, of_finance)
        assert await served.waiting_for("bert") == {one}, "a person votes once"
        assert await served.waiting_for("carl") == {one, two, three}, "the second one is to vote"
        with refused("PERMISSION_DENIED"):
            await bert.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(decidable_by="carl"))
        with refused("PERMISSION_DENIED"):
            watch: Any = bert.approvals.WatchApprovals(approval_pb2.WatchApprovalsRequest(decidable_by="carl"))
            await watch.read()
    until = Timestamp()
    until.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    async with served.as_("carl") as carl:
        await carl.approvals.DelegateApprovals(approval_pb2.DelegateApprovalsRequest(principal="dora", until=until))
    assert await served.waiting_for("dora") == {one, two, three}, "carl has lent its authority"


async def test_the_inbox_of_a_person_shows_what_comes_and_what_its_own_vote_takes_away(served: Served) -> None:
    async with served.as_("bert") as bert, served.as_("dora") as dora:
        request = approval_pb2.WatchApprovalsRequest(decidable_by="@me")
        berts: Any = bert.approvals.WatchApprovals(request)
        doras: Any = dora.approvals.WatchApprovals(request)
        for stream in (berts, doras):
            assert (await stream.read()).caught_up
        for_finance = await served.requested("finance", by="anna")
        async with asyncio.timeout(15):
            assert [approval.approval_id for approval in (await berts.read()).approvals] == [for_finance.approval_id]
            await harness.decide(bert, for_finance)
            gone = (await berts.read()).gone
        assert [(approval.approval_id, approval.state) for approval in gone] == [(for_finance.approval_id, PENDING)]
        for_any = await served.requested("open", by="cleo")
        async with asyncio.timeout(15):
            for stream in (berts, doras):
                assert [shown.approval_id for shown in (await stream.read()).approvals] == [for_any.approval_id]
            berts.cancel()
            doras.cancel()


async def test_who_may_decide_may_give_more_time(served: Served) -> None:
    approval = await served.requested("finance", by="bert")
    request = approval_pb2.ExtendApprovalRequest(approval_id=approval.approval_id, ttl=approval.longest_ttl)
    for name in ("bert", "dora"):
        async with served.as_(name) as stubs:
            with refused("PERMISSION_DENIED"):
                await stubs.approvals.ExtendApproval(request)
    async with served.as_("carl") as carl:
        extended = await carl.approvals.ExtendApproval(request)
        assert extended.approval.ttl == approval.longest_ttl
        assert await carl.approvals.ExtendApproval(request) == extended
