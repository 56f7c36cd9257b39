"""The service itself: turnkeeper.tools.v1.ToolService on a ledger of keys."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from grpc import aio

from turnkeeper_client.pb.tools.v1 import tool_pb2
from turnkeeper_client.pb.tools.v1.tool_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server
from turnkeeper_tool_server import ledger
from turnkeeper_tool_server.ledger import REFUSED, STARTS, Entry, KeyLedger
from turnkeeper_tool_server.tokens import BadToken, TokenCheck, check_call

RESULT_BYTES: Final = 64 * 1024
"""The largest result: Turnkeeper passes no larger one on."""
RETRY_AFTER: Final = timedelta(milliseconds=500)
Context = aio.ServicerContext
T = TypeVar("T")


class ToolFailed(Exception):
    """A tool's failure with a message for the model. `took_effect`: it has changed something all the same."""

    def __init__(self, message: str, *, took_effect: bool = False) -> None:
        super().__init__(message)
        self.took_effect = took_effect


@dataclass(frozen=True)
class Call:
    """What a tool may know about its call."""

    key: str
    """The same for every start of one call."""
    attempt: int
    claims: Mapping[str, Any]
    """Of the verified token: tenant, principal, on_behalf_of, session, call, approval and others; empty without one."""
    progress: Callable[[str], None]
    """Sends a line about how far the tool is, for people."""


Tool = Callable[[dict[str, Any], Call], Awaitable[object]]
Lookup = Callable[[str], Awaitable[object]]


@dataclass(frozen=True)
class _Tool:
    run: Tool
    listed: tool_pb2.Tool
    lookup: Lookup | None
    cancellable: bool


@dataclass
class _Run:
    task: "asyncio.Task[Entry]"
    attempt: int
    waiters: int = 0
    lines: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class ToolServer(ToolServiceServicer):
    """Add it to a server of grpc.aio by `add_to`."""

    def __init__(self, name: str, *, database: Path | str | KeyLedger, key_set: str | TokenCheck | None) -> None:
        """`name`: the server's in Turnkeeper's catalogue. `database`: the file of its keys; one process has it.

        `key_set`: the URL of Turnkeeper's keys, by which tokens are verified. None trusts every caller.
        """
        self._ledger = database if isinstance(database, KeyLedger) else KeyLedger(database)
        self._check = TokenCheck(name, key_set) if isinstance(key_set, str) else key_set
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._tools: dict[str, _Tool] = {}
        self._runs: dict[str, _Run] = {}

    def tool(
        self,
        schema: Mapping[str, Any],
        *,
        annotations: Mapping[str, Any] | None = None,
        lookup: Lookup | None = None,
        cancellable: bool = False,
    ) -> Callable[[Tool], Tool]:
        """Makes a coroutine function a tool: its name, its docstring, and this JSON Schema of its arguments.

        `lookup` takes a key, and returns the result of the call that took effect under it, or None if none did and none
        still can. It answers for calls that were lost with the process. `cancellable`: a cancelled call ends its tool;
        otherwise the tool runs to its end, and its result is kept.
        """

        def add(function: Tool) -> Tool:
            name = getattr(function, "__name__", "")
            listed = tool_pb2.Tool(
                name=name, description=function.__doc__ or name, schema_json=json.dumps(dict(schema))
            )
            if annotations:
                ParseDict(dict(annotations), listed.annotations)
            self._tools[name] = _Tool(function, listed, lookup, cancellable)
            return function

        return add

    def add_to(self, server: aio.Server) -> None:
        """Serves the tools on this server."""
        add_ToolServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call,unused-ignore]

    async def ListTools(self, request: tool_pb2.ListToolsRequest, context: Any) -> tool_pb2.ListToolsResponse:
        """Lists the tools."""
        await self._claims(context, None, refusal=grpc.StatusCode.UNAUTHENTICATED)
        return tool_pb2.ListToolsResponse(tools=[tool.listed for tool in self._tools.values()])

    async def CallTool(
        self, request: tool_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_pb2.CallToolResponse]:
        """Runs a tool once for each key."""
        claims = await self._claims(context, request, refusal=grpc.StatusCode.ABORTED)
        tool, key = self._tools.get(request.name), request.idempotency_key
        if tool is None or request.attempt < 1 or not key:
            await _refuse(context, f"there is no tool {request.name}" if tool is None else "it has no key or attempt")
        run = self._runs.get(key)
        since = len(run.lines) if run is not None else 0
        if run is None or request.attempt < run.attempt:
            begun = await asyncio.shield(asyncio.ensure_future(self._begun(tool, request, claims)))
            if begun is REFUSED:
                await _refuse(context, "this start was given up before it came, or is too old; it did not run")
            if isinstance(begun, Entry):
                if begun.state not in (ledger.DONE, ledger.FAILED):
                    await context.abort(grpc.StatusCode.UNKNOWN, "the call was lost in the middle")
                yield _response(begun)
                return
            run = begun
        async for response in _followed(run, since, cancellable=tool.cancellable):
            yield response

    async def Reconcile(self, request: tool_pb2.ReconcileRequest, context: Any) -> tool_pb2.ReconcileResponse:
        """Tells what became of a call."""
        await self._claims(context, request, refusal=grpc.StatusCode.UNAUTHENTICATED)
        key, attempt, tool = request.idempotency_key, request.attempt, self._tools.get(request.name)
        entry = await self._on_disk(self._ledger.reconcile, key, attempt, _seconds(request))
        if entry.state == ledger.RUNNING and key not in self._runs:  # it has ended, which could not be stored
            entry = Entry(ledger.BROKEN)
            await self._on_disk(self._ledger.end, key, entry)
        if entry.state == ledger.BROKEN and tool is not None and tool.lookup is not None:
            result = await tool.lookup(key)
            entry = await self._on_disk(self._ledger.settle, key, attempt, None if result is None else _text(result))
        return _answer(entry)

    async def _begun(self, tool: _Tool, request: tool_pb2.CallToolRequest, claims: Mapping[str, Any]) -> _Run | Entry:
        """Returns the run to follow, or what the ledger answers. Must not be cancelled: what it has as RUNNING runs."""
        key = request.idempotency_key
        entry = await self._on_disk(self._ledger.begin, key, request.attempt, _seconds(request))
        if entry is REFUSED:
            return entry
        return self._runs.get(key) or (self._started(tool, request, claims) if entry is STARTS else entry)

    def _started(self, tool: _Tool, request: tool_pb2.CallToolRequest, claims: Mapping[str, Any]) -> _Run:
        key = request.idempotency_key

        def progress(line: str) -> None:
            run.lines.append(line)
            run.news.set()

        call = Call(key=key, attempt=request.attempt, claims=claims, progress=progress)
        run = _Run(asyncio.create_task(self._ended(tool, request.arguments_json, call)), request.attempt)
        self._runs[key] = run

        def ended(_: object) -> None:
            self._runs.pop(key, None)
            run.news.set()

        run.task.add_done_callback(ended)
        return run

    async def _ended(self, tool: _Tool, arguments_json: str, call: Call) -> Entry:
        try:
            entry = Entry(ledger.DONE, _text(await tool.run(json.loads(arguments_json), call)), took_effect=True)
        except ToolFailed as failed:
            entry = Entry(ledger.FAILED, json.dumps({"error": str(failed)}), took_effect=failed.took_effect)
        except asyncio.CancelledError:
            entry = Entry(ledger.BROKEN)
        except Exception as error:  # noqa: BLE001 - a tool may raise anything; it may have taken effect before
            entry = Entry(ledger.FAILED, json.dumps({"error": type(error).__name__}), took_effect=True)
        await self._on_disk(self._ledger.end, call.key, entry)
        return entry

    async def _claims(self, context: Any, request: Any, *, refusal: grpc.StatusCode) -> Mapping[str, Any]:
        claims: Mapping[str, Any] = {}
        if self._check is not None:
            try:
                claims = await self._check.claims(dict(context.invocation_metadata() or ()))
                if request is not None:
                    check_call(claims, request)
            except BadToken as error:
                await context.abort(refusal, str(error))
        return claims

    async def _on_disk(self, function: Callable[..., T], *values: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *values)


async def _followed(run: _Run, sent: int, *, cancellable: bool) -> AsyncIterator[tool_pb2.CallToolResponse]:
    """Yields the progress of a run after the first `sent` lines, then its result."""
    run.waiters += 1
    try:
        while True:
            for line in run.lines[sent:]:
                yield tool_pb2.CallToolResponse(progress=tool_pb2.Progress(message=line))
            sent = len(run.lines)
            if run.task.done():
                break
            run.news.clear()
            await run.news.wait()
        yield _response(run.task.result())
    finally:
        run.waiters -= 1
        if cancellable and not run.waiters and not run.task.done():
            run.task.cancel()


async def _refuse(context: Any, reason: str) -> NoReturn:
    """Refuses a start: ABORTED is the proof that it had no effect."""
    await context.abort(grpc.StatusCode.ABORTED, reason)
    raise AssertionError("abort raises")


def _text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > RESULT_BYTES:
        raise ToolFailed(f"The result has more than {RESULT_BYTES} bytes.", took_effect=True)
    return text


def _seconds(request: "tool_pb2.CallToolRequest | tool_pb2.ReconcileRequest") -> float:
    """Returns when the start was stored; the beginning of time if the caller does not tell."""
    return request.start_time.seconds + request.start_time.nanos / 1e9


def _response(entry: Entry) -> tool_pb2.CallToolResponse:
    failed = entry.state != ledger.DONE
    result = entry.result_json or json.dumps({"error": "It was cancelled in the middle."})
    return tool_pb2.CallToolResponse(result=tool_pb2.Result(result_json=result, failed=failed))


def _answer(entry: Entry) -> tool_pb2.ReconcileResponse:
    response = tool_pb2.ReconcileResponse()
    match entry.state:
        case ledger.BARRED:
            response.not_started.SetInParent()
        case ledger.RUNNING:
            response.running.retry_after.FromTimedelta(RETRY_AFTER)
        case ledger.DONE:
            response.done.result_json = entry.result_json
        case ledger.FAILED:
            response.failed.result_json, response.failed.took_effect = entry.result_json, entry.took_effect
        case _:
            response.unknown.SetInParent()
    return response
