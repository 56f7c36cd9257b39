"""Promise I5 over gRPC: an owner is stopped after STARTED and before the call leaves. Its call has one effect.

Two real servers, the helper's sample as the tool's server, and tokens that it verifies.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.checker.compare import check
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS, until_event
from tests.e2e.support.server_processes import thaw
from tests.tool_servers.bank import Bank, catalogue
from tests.tool_servers.served import a_key_file, published, served
from turnkeeper import faults
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, event_pb2
from turnkeeper.tools.remote.tokens import CallTokens

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^transfer'
tool_calls = [{ name = "ledger__transfer", arguments = { to = "bob", amount = 5 } }]

[[reply]]
text = "Told: {tool_result}"
"""


@dataclass(kw_only=True)
class Stage:
    """A bank, and how servers that use it are started."""

    bank: Bank
    flags: tuple[str, ...]
    mongo_uri: str
    database: str
    model: ScriptedModel

    def server(self, **variables: str) -> AbstractAsyncContextManager[harness.ServerProcess]:
        patience = ("--outcome-patience", "10s")
        return harness.server_process(
            self.mongo_uri, self.database, self.model, flags=(*self.flags, *patience), variables=variables
        )


@pytest_asyncio.fixture(loop_scope="module")
async def stage(mongo_uri: str, module_database: str, tmp_path: Path) -> AsyncIterator[Stage]:
    key = a_key_file(tmp_path)
    async with published(CallTokens.from_files([key])) as url, harness.scripted(SCRIPT) as model:
        bank = Bank(tmp_path, url)
        async with served(bank) as address:
            flags = ("--agents", str(AGENTS), "--catalogue", str(catalogue(tmp_path, address, key)))
            yield Stage(bank=bank, flags=flags, mongo_uri=mongo_uri, database=module_database, model=model)


async def test_i5_a_stopped_owner_that_goes_on_after_its_call_was_given_up_has_no_effect(stage: Stage) -> None:
    async with (
        stage.server(**{faults.VARIABLE: "turn.tool.before_start=stop"}) as armed,
        harness.connect(armed.address) as to_armed,
    ):
        session = await harness.create_test_session(to_armed, agent="worker")
        sent = asyncio.create_task(harness.send_message_to_session(to_armed, session, "transfer", wait=0))
        async with stage.server() as keeper, harness.connect(keeper.address) as stubs:
            event = await until_event(stubs, session, "tool_reconciled")
            assert event.tool_reconciled.state == event_pb2.RECONCILED_STATE_NOT_STARTED
            turn_id = event.turn_id
            ended = await harness.wait_for_turn(stubs, session, turn_id)
            assert ended.state == chat_pb2.TURN_STATE_COMPLETED
            assert harness.answer_of(ended) == "Told: 5 to bob: done"
            assert not stage.bank.ledger.refused
            thaw(armed)

            async def is_refused() -> bool:
                return bool(stage.bank.ledger.refused)

            await until(is_refused)
            events = await harness.all_events(stubs, session)
            assert harness.kinds(events).count("tool_started") == 2
            assert "approval_requested" not in harness.kinds(events)
            ((key, attempt),) = stage.bank.ledger.refused
            assert attempt == events[harness.kinds(events).index("tool_started")].attempt
            assert [transfer[0] for transfer in stage.bank.transfers()] == [key]
            sent.cancel()
            await asyncio.wait([sent])
    await check(stage.mongo_uri, stage.database)
