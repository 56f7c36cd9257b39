"""A tool server over gRPC as a source of tools, against the helper's sample."""

import asyncio
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio

from tests.tool_servers.bank import Bank
from tests.tool_servers.served import a_context, connected, published, served
from turnkeeper.domain.tool import ReconciledState, ToolClass
from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.pb.tools.v1.tool_pb2_grpc import ToolServiceStub
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, Reconciled, SourceUnreachable, StillRunning, ToolError
from turnkeeper.tools.remote.listed import start_time_of
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.remote.tokens import CallTokens
from turnkeeper_tool_server import Call, KeyLedger, ToolServer
from turnkeeper_tool_server.ledger import BROKEN, DONE, KEEP, STARTS, Entry

STATE = ReconciledState
TRANSFER = '{"amount":5,"to":"bob"}'
TOOL = "ledger__transfer"


@pytest.fixture
def tokens() -> CallTokens:
    return CallTokens()


@pytest_asyncio.fixture
async def source(tmp_path: Path, tokens: CallTokens) -> AsyncIterator[RemoteTools]:
    async with published(tokens) as url:
        bank = Bank(tmp_path, url)
        async with served(bank) as address, connected(address, tokens) as source:
            await source.refresh()
            yield source


async def test_its_tools_are_listed_and_run_once_for_each_key(source: RemoteTools) -> None:
    (spec,) = source.specs()
    assert (spec.name, spec.source, spec.tool_class) == (TOOL, "ledger", ToolClass.READ_ONLY)
    lines: list[str] = []
    context = a_context(arguments_json=TRANSFER, report=lines.append)
    assert json.loads(await source.call(TOOL, {}, context)) == "5 to bob: done"
    assert lines == ["writing the transfer into the book"]
    again = replace(context, attempt=2)
    assert json.loads(await source.call(TOOL, {}, again)) == "5 to bob: done"
    assert await source.reconcile(TOOL, again) == Reconciled(state=STATE.DONE, result_json='"5 to bob: done"')


async def test_not_started_is_kept_as_a_promise(source: RemoteTools) -> None:
    context = a_context(arguments_json=TRANSFER, attempt=2)
    assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.NOT_STARTED)
    for attempt in (1, 2):
        with pytest.raises(NotStarted, match="it did not run"):
            await source.call(TOOL, {}, replace(context, attempt=attempt))
    assert json.loads(await source.call(TOOL, {}, replace(context, attempt=3))) == "5 to bob: done"


async def test_a_failure_of_the_tool_is_told_with_its_words(source: RemoteTools) -> None:
    context = a_context(arguments_json='{"amount":0,"to":"bob"}')
    with pytest.raises(ToolError, match="above 0"):
        await source.call(TOOL, {}, context)
    answer = await source.reconcile(TOOL, context)
    assert answer == Reconciled(state=STATE.FAILED, result_json='{"error": "The amount must be above 0."}')


async def test_a_call_that_was_lost_with_the_service_is_told_by_its_own_book(tmp_path: Path) -> None:
    context = a_context(arguments_json=TRANSFER)
    before = Bank(tmp_path, None)
    now = context.start_time.timestamp() if context.start_time else 0.0
    for key in ("paid", "unpaid"):
        before.ledger.begin(key, 1, now)
    await before.book.transfer({"to": "bob", "amount": 5}, Call("paid", 1, {}, lambda _: None))
    before.ledger.close()
    async with served(Bank(tmp_path, None)) as address, connected(address) as source:
        await source.refresh()
        answer = await source.reconcile(TOOL, replace(context, key="paid"))
        assert answer == Reconciled(state=STATE.DONE, result_json='"5 to bob: done"')
        assert await source.reconcile(TOOL, replace(context, key="unpaid")) == Reconciled(state=STATE.NOT_STARTED)
        with pytest.raises(NotStarted):
            await source.call(TOOL, {}, replace(context, key="unpaid"))


@pytest.mark.parametrize("before", [timedelta(hours=25), timedelta(days=400)])
async def test_what_may_be_forgotten_is_no_promise(tmp_path: Path, before: timedelta) -> None:
    """After a day, or on a new disk, the server cannot tell a start that it never had from one that it forgot."""
    context = a_context(arguments_json=TRANSFER, start_time=datetime.now(UTC) - before)
    async with served(Bank(tmp_path, None)) as address, connected(address) as source:
        await source.refresh()
        assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.UNKNOWN)
        with pytest.raises(NotStarted):
            await source.call(TOOL, {}, context)
        assert await source.reconcile(TOOL, replace(context, start_time=None)) == Reconciled(state=STATE.UNKNOWN)


async def test_only_a_valid_token_of_the_call_is_accepted(tmp_path: Path) -> None:
    tokens, others = CallTokens(), CallTokens()
    late = CallTokens([Ed25519PrivateKey.generate()], clock=lambda: time.time() - 120)
    context = a_context(arguments_json=TRANSFER)
    async with published(tokens) as url, published(late) as late_url:
        for folder, key_set, signer in (("others", url, others), ("late", late_url, late)):
            (tmp_path / folder).mkdir()
            bank = Bank(tmp_path / folder, key_set)
            async with served(bank) as address, connected(address, signer) as source:
                with pytest.raises(SourceUnreachable, match="UNAUTHENTICATED"):
                    await source.refresh()
                source._foreign = {TOOL: "transfer"}  # noqa: SLF001 - as listed before
                with pytest.raises(NotStarted, match="token"):
                    await source.call(TOOL, {}, context)
                assert not bank.transfers()


async def test_the_token_of_a_call_is_for_no_other_call(tmp_path: Path) -> None:
    tokens = CallTokens()
    context = a_context(arguments_json=TRANSFER)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(published(tokens))
        address = await stack.enter_async_context(served(Bank(tmp_path, url)))
        async with aio.insecure_channel(address) as channel:
            stub: Any = ToolServiceStub(channel)
            metadata = (("authorization", f"Bearer {tokens.of_call('ledger', 'transfer', context)}"),)
            request = tool_pb2.CallToolRequest(
                name="transfer",
                arguments_json=TRANSFER,
                idempotency_key=context.key,
                attempt=1,
                start_time=start_time_of(context),
            )
            for changed, word in (
                ({"arguments_json": '{"amount":500,"to":"eve"}'}, "arguments_sha256"),
                ({"attempt": 2}, "attempt"),
                ({"idempotency_key": "other"}, "key"),
            ):
                other = tool_pb2.CallToolRequest()
                other.CopyFrom(request)
                for name, value in changed.items():
                    setattr(other, name, value)
                with pytest.raises(aio.AioRpcError, match=f"another {word}"):
                    async for _ in stub.CallTool(other, metadata=metadata):
                        pass
            responses = [response async for response in stub.CallTool(request, metadata=metadata)]
            assert responses[-1].result.result_json == '"5 to bob: done"'


async def test_a_start_that_runs_is_joined_and_a_tool_runs_to_its_end_without_its_caller(tmp_path: Path) -> None:
    begun, goes_on, effects = asyncio.Event(), asyncio.Event(), list[str]()
    server = ToolServer("ledger", database=KeyLedger(tmp_path / "calls.sqlite", skew=-5.0), key_set=None)

    @server.tool({"type": "object"})
    async def transfer(arguments: dict[str, Any], call: Call) -> str:
        begun.set()
        await goes_on.wait()
        effects.append(call.key)
        return "moved"

    context = a_context()
    async with served(server) as address, connected(address) as source:
        await source.refresh()
        first = asyncio.create_task(source.call(TOOL, {}, context))
        await begun.wait()
        second = asyncio.create_task(source.call(TOOL, {}, replace(context, attempt=2)))
        assert isinstance(await source.reconcile(TOOL, context), StillRunning)
        first.cancel()
        goes_on.set()
        assert await second == '"moved"'
        assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.DONE, result_json='"moved"')
    assert effects == [context.key]


class SlowLedger(KeyLedger):
    """A ledger on a disk that is slow, or full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, skew=-5.0)
        self.may_begin = threading.Event()
        self.is_full = False

    def begin(self, key: str, attempt: int, start_time: float) -> Entry:
        entry = super().begin(key, attempt, start_time)
        assert self.may_begin.wait(30)
        return entry

    def end(self, key: str, entry: Entry) -> None:
        if self.is_full:
            self.is_full = False
            raise sqlite3.OperationalError("database or disk is full")
        super().end(key, entry)


async def test_a_call_that_is_cancelled_while_its_key_is_stored_runs_all_the_same(tmp_path: Path) -> None:
    """Otherwise its key would be that of a call that runs, until the service ends."""
    ledger, begun, cancelled, done = SlowLedger(tmp_path / "calls.sqlite"), *(asyncio.Event() for _ in range(3))

    class Watched(ToolServer):
        async def CallTool(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            begun.set()
            try:
                async for response in super().CallTool(request, context):
                    yield response
            except asyncio.CancelledError:
                cancelled.set()
                raise

    server = Watched("ledger", database=ledger, key_set=None)

    @server.tool({"type": "object"})
    async def transfer(arguments: dict[str, Any], call: Call) -> str:
        done.set()
        return "moved"

    context = a_context()
    async with served(server) as address, connected(address) as source:
        await source.refresh()
        call = asyncio.create_task(source.call(TOOL, {}, context))
        await begun.wait()
        call.cancel()
        await cancelled.wait()
        ledger.may_begin.set()
        async with asyncio.timeout(30):
            await done.wait()
        assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.DONE, result_json='"moved"')


@pytest.mark.parametrize("of_records", [None, "moved"])
async def test_a_call_whose_end_cannot_be_stored_does_not_run_for_ever(tmp_path: Path, of_records: str | None) -> None:
    ledger = SlowLedger(tmp_path / "calls.sqlite")
    ledger.may_begin.set()
    server = ToolServer("ledger", database=ledger, key_set=None)

    async def transfer(arguments: dict[str, Any], call: Call) -> str:
        return "moved"

    async def of_key(_: str) -> str | None:
        return of_records

    server.tool({"type": "object"}, lookup=of_key if of_records else None)(transfer)
    context = a_context()
    async with served(server) as address, connected(address) as source:
        await source.refresh()
        ledger.is_full = True
        with pytest.raises(OutcomeUnknown):
            await source.call(TOOL, {}, context)
        expected = (
            Reconciled(state=STATE.DONE, result_json='"moved"') if of_records else Reconciled(state=STATE.UNKNOWN)
        )
        assert await source.reconcile(TOOL, context) == expected


def test_a_call_that_runs_for_longer_than_a_day_keeps_its_key(tmp_path: Path) -> None:
    now = 1e9
    ledger = KeyLedger(tmp_path / "calls.sqlite", skew=-5.0, clock=lambda: now)
    assert ledger.begin("long", 1, now) is STARTS
    started, now = now, now + 3 * KEEP
    ledger.end("long", Entry(DONE, '"moved"'))
    assert ledger.reconcile("long", 1, started) == Entry(DONE, '"moved"')
    now += 2 * KEEP
    assert ledger.reconcile("long", 1, started) == Entry(BROKEN), "an ended one is forgotten after a day"


async def test_a_start_is_refused_while_the_keys_cannot_be_read(tmp_path: Path) -> None:
    """It had no effect, and that is proven, whatever answers in place of the key set."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as pages:
        bank = Bank(tmp_path, str(pages.make_url("/")))
        async with served(bank) as address, connected(address) as source:
            source._foreign = {TOOL: "transfer"}  # noqa: SLF001 - as listed before
            with pytest.raises(NotStarted, match="token"):
                await source.call(TOOL, {}, a_context(arguments_json=TRANSFER))
            assert not bank.transfers()
