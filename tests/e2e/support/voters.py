"""Replicas with an identity on one database, and the people who vote there."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests import harness
from tests.identities import connect_as, row, settings_of
from turnkeeper.pb.v1 import approval_pb2, audit_pb2, event_pb2

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^look-and-do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }, { name = "look", arguments = {} }]

[[reply]]
text = "Told: {tool_result}"
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

[[agent]]
name = "lenient"
tools = ["act"]
[[agent.policy]]
tool = "act"
[agent.policy.approve]
k = 2
veto = false
direct = true

[[agent]]
name = "direct"
tools = ["act"]
[[agent.policy]]
tool = "act"
[agent.policy.approve]
groups = ["finance"]
direct = true

[[agent]]
name = "plain"
tools = ["act"]
"""
BOTH = ["caller", "approver"]
ROWS = "".join(
    (
        row("anna", tenant="acme", roles=BOTH, groups=["finance"]),
        row("bob", tenant="acme", roles=["approver"], groups=["finance"]),
        row("eve", tenant="acme", roles=["approver"], groups=["finance"]),
        row("sue", tenant="acme", roles=["approver"]),
        row("vic", tenant="acme", roles=["approver"]),
        row("kim", tenant="acme", roles=["caller"], groups=["finance"]),
        row("portal", tenant="acme", roles=["delegate", "approver"], groups=["finance"]),
        row("olga", tenant="acme", roles=["operator"]),
        row("udo", tenant="acme", roles=["auditor"]),
    )
)
APPROVE, REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
PENDING, APPROVED = approval_pb2.APPROVAL_STATE_PENDING, approval_pb2.APPROVAL_STATE_APPROVED
REPLICAS = 3


@dataclass(frozen=True, slots=True)
class Served:
    """Replicas on one database, and their callers."""

    mongo_uri: str
    database: str
    addresses: list[str]
    stack: contextlib.AsyncExitStack
    stubs: dict[str, Any] = field(default_factory=dict)

    async def as_(self, name: str, replica: int = 0, **metadata: str) -> Any:
        """Returns the stubs of a principal of the tenant `acme`."""
        key = f"{name} {replica} {metadata}"
        if key not in self.stubs:
            connection = connect_as(self.addresses[replica], f"acme/{name}", **metadata)
            self.stubs[key] = await self.stack.enter_async_context(connection)
        return self.stubs[key]

    async def pending(self, label: str, agent: str = "payer", sender: Any = None) -> approval_pb2.Approval:
        """Returns an approval of a session of anna's, which waits."""
        anna = await self.as_("anna")
        await harness.create_test_session(anna, agent=agent, session_id=label)
        await harness.send_message_to_session(sender or anna, label, f"do {label}")
        return await harness.wait_for_approval(anna, label)

    async def events(self, label: str, *kinds: str) -> list[event_pb2.Event]:
        events = await harness.all_events(await self.as_("anna"), label)
        return [event for event in events if event.WhichOneof("payload") in kinds]

    async def records(self, **which: str) -> list[dict[str, Any]]:
        """Returns the records of the audit trail that have these values."""
        udo = await self.as_("udo")
        responses = udo.audit.ExportAudit(audit_pb2.ExportAuditRequest())
        lines = b"".join([response.lines async for response in responses]).splitlines()
        exported = [json.loads(line) for line in lines]
        records = [json.loads(line["record"]["text"]) for line in exported if "record" in line]
        return [record for record in records if which.items() <= record.items()]


@contextlib.asynccontextmanager
async def serving_voters(
    mongo_uri: str, database: str, folder: Path, *, replicas: int = REPLICAS
) -> AsyncIterator[Served]:
    """Starts servers with the agents and the people above."""
    settings = settings_of(folder, ROWS)
    (folder / "agents.toml").write_text(AGENTS)
    async with contextlib.AsyncExitStack() as stack:
        model = await stack.enter_async_context(harness.scripted(SCRIPT))
        servers = [
            await stack.enter_async_context(
                harness.serving(mongo_uri, database, model, agents=folder / "agents.toml", **settings)
            )
            for _ in range(replicas)
        ]
        yield Served(mongo_uri, database, [server.address for server in servers], stack)


async def delegate(stubs: Any, name: str, *, days: float = 1) -> None:
    request = approval_pb2.DelegateApprovalsRequest(principal=name)
    request.until.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    await stubs.approvals.DelegateApprovals(request)
