"""A tool server as a source of tools: lists, calls, and what became of calls, over turnkeeper.tools.v1.ToolService."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import grpc
from grpc import aio

from turnkeeper.domain.json_text import problem_of
from turnkeeper.domain.tool import ReconciledState, ToolSpec, model_text
from turnkeeper.isolation import ends_task
from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.pb.tools.v1.tool_pb2_grpc import ToolServiceStub
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.contract import (
    CannotReconcile,
    NotStarted,
    OutcomeUnknown,
    Reconciled,
    SourceUnreachable,
    StillRunning,
    ToolContext,
    ToolError,
)
from turnkeeper.tools.remote.channel import CONNECT_TIME, RemoteServer, connect, opened
from turnkeeper.tools.remote.listed import described, retry_after_of, start_time_of
from turnkeeper.tools.remote.tokens import CallTokens
from turnkeeper.tools.results import RESULT_BYTES, UnfitResult
from turnkeeper.tools.server_log import ServerLog

LIST_AGAIN: Final = 30.0
"""Seconds after which the server's tools are listed again; after a failure sooner."""
FIRST_PAUSE: Final = 1.0
"""Seconds between the first two tries to list them. It doubles, up to LIST_AGAIN."""
ONE_REQUEST: Final = 5.0
"""Seconds that one request of another kind than a call may take."""
MOST_PROGRESS: Final = 100_000
"""Messages of progress in one call: a server that sends more is cut off."""
MOST_WORDS: Final = 500
"""Characters of a server's own message about a refusal that the model receives."""


class RemoteTools:
    """The tools of one server."""

    def __init__(self, server: RemoteServer, tokens: CallTokens) -> None:
        """Connects nothing."""
        self._server = server
        self._tokens = tokens
        self._channel: aio.Channel | None = None
        self._stub: ToolServiceStub
        self._specs: Sequence[ToolSpec] | None = None
        self._foreign: Mapping[str, str] = {}
        """The tools' names at the server, by their full names."""
        self._refused: Mapping[str, str] = {}
        self._one_listing = asyncio.Lock()
        self._log = ServerLog(server.name)
        self.listing = 0
        self.problem = f"{server.name} has not answered yet"

    @property
    def name(self) -> str:
        """Returns the server's name in the catalogue."""
        return self._server.name

    @property
    def tokens(self) -> CallTokens:
        """Returns what signs the calls."""
        return self._tokens

    def specs(self) -> Sequence[ToolSpec]:
        """Returns the tools as last listed. Raises SourceUnreachable before the first list."""
        if self._specs is None:
            raise SourceUnreachable(self.problem)
        return self._specs

    async def run(self) -> NoReturn:
        """Keeps the connection, and lists the tools again and again, until it is cancelled."""
        channel = self._channel = opened(self._server)
        self._stub = ToolServiceStub(channel)
        pause = FIRST_PAUSE
        try:
            while True:
                try:
                    await self.refresh()
                    pause = LIST_AGAIN
                except SourceUnreachable:
                    pause = min(LIST_AGAIN, 2 * pause) if self.problem else FIRST_PAUSE
                await asyncio.sleep(pause)
        finally:
            self._channel = None
            await channel.close()

    async def refresh(self) -> None:
        """Lists the tools anew. Raises SourceUnreachable."""
        try:
            await self._connected(CONNECT_TIME)
            async with self._one_listing:
                await self._list()
        except (NotStarted, aio.AioRpcError) as error:
            self.problem = f"{self.name} does not list its tools: {_words(error)}"
            raise SourceUnreachable(self.problem) from None
        except asyncio.CancelledError as error:
            if ends_task(error):
                raise
            raise SourceUnreachable(f"the connection to {self.name} was closed here") from None
        self.problem = ""

    async def _list(self) -> None:
        """Lists the tools, and takes them from now on."""
        metadata = self._metadata(self._tokens.of_listing(self.name))
        response = await self._stub.ListTools(tool_pb2.ListToolsRequest(), metadata=metadata, timeout=ONE_REQUEST)
        taken = await asyncio.to_thread(described, self.name, response)
        for name in taken.refused.keys() - self._refused.keys():
            self._log.write(f": its tool {name} is not offered: {taken.refused[name]}")
        self._refused = taken.refused
        if taken.specs != self._specs:
            self._specs, self._foreign = taken.specs, taken.foreign
            self.listing += 1

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:  # noqa: ARG002
        """Runs the tool. Raises as the contract has it.

        NotStarted only if no connection opened, or if the server refused the start as ABORTED before anything else.
        """
        own = self._foreign.get(name)
        if own is None:
            raise NotStarted(f"There is no tool named {name} any more; it did not run.")
        await self._connected(context.timeout.total_seconds())
        request = tool_pb2.CallToolRequest(
            name=own,
            arguments_json=context.arguments_json,
            idempotency_key=context.key,
            session_id=context.session_id,
            attempt=context.attempt,
            start_time=start_time_of(context),
        )
        metadata = self._metadata(self._tokens.of_call(self.name, own, context))
        responses = self._stub.CallTool(request, metadata=metadata, timeout=context.timeout.total_seconds())
        return _checked(await self._result(responses, context))

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled | StillRunning:
        """Returns what the server tells of a call. Raises CannotReconcile, and SourceUnreachable without an answer."""
        own = self._foreign.get(name) or name.removeprefix(f"{self.name}__")
        try:
            await self._connected(CONNECT_TIME)
            request = tool_pb2.ReconcileRequest(
                name=own,
                idempotency_key=context.key,
                attempt=context.attempt,
                start_time=start_time_of(context),
            )
            metadata = self._metadata(self._tokens.of_call(self.name, own, context))
            response = await self._stub.Reconcile(request, metadata=metadata, timeout=ONE_REQUEST)
        except (NotStarted, aio.AioRpcError) as error:
            if isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise CannotReconcile(self.name) from None
            raise SourceUnreachable(f"{self.name}: {_words(error)}") from None
        return _reconciled(response)

    async def _connected(self, within: float) -> None:
        """Raises NotStarted unless the connection is open."""
        if self._channel is None:
            raise NotStarted(f"The server {self.name} is not connected; the tool did not run.")
        await connect(self._channel, name=self.name, within=within)

    async def _result(
        self,
        responses: "aio.UnaryStreamCall[tool_pb2.CallToolRequest, tool_pb2.CallToolResponse]",
        context: ToolContext,
    ) -> tool_pb2.Result:
        """Returns the call's result. Passes its progress on. A cancellation of the task cancels the call."""
        messages = 0
        try:
            async for response in responses:
                if response.WhichOneof("kind") == "result":
                    return response.result
                context.report(response.progress.message)
                messages += 1
                if messages > MOST_PROGRESS:
                    raise self._unknown("it sent too much")
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED and not messages:
                raise NotStarted(f"The server {self.name} refused the call: {_words(error)}") from None
            raise self._unknown(f"{error.code().name}") from None
        except asyncio.CancelledError as error:
            if ends_task(error):
                raise
            raise self._unknown("its connection was closed here") from None
        finally:
            responses.cancel()
        raise self._unknown("it ended without a result")

    def _unknown(self, reason: str) -> OutcomeUnknown:
        words = f"The call of the server {self.name} broke ({reason}); the tool may have taken effect."
        return OutcomeUnknown(words)

    @staticmethod
    def _metadata(token: str) -> tuple[tuple[str, str], ...]:
        parent = Spans.traceparent()
        trace = (("traceparent", parent),) if parent else ()
        return (("authorization", f"Bearer {token}"), *trace)


def _checked(result: tool_pb2.Result) -> str:
    """Returns the result as JSON text. Raises ToolError for a failed one, and UnfitResult."""
    _check(result.result_json)
    if result.failed:
        raise ToolError(_message(result.result_json))
    return result.result_json


def _check(text: str) -> None:
    """Raises UnfitResult if the text cannot be a result."""
    if len(text.encode(errors="replace")) > RESULT_BYTES:
        raise UnfitResult(f"The result has more than {RESULT_BYTES} bytes; it is not passed on. Ask for less.")
    if problem := problem_of(text):
        raise UnfitResult(f"The tool returned something that is no JSON that can be used: the text {problem}.")


def _message(result_json: str) -> str:
    """Returns a failure as words for the model."""
    value = json.loads(result_json)
    if isinstance(value, dict) and isinstance(value.get("error"), str):
        return str(value["error"])
    return model_text(result_json)


def _reconciled(response: tool_pb2.ReconcileResponse) -> Reconciled | StillRunning:
    match response.WhichOneof("state"):
        case "not_started":
            return Reconciled(state=ReconciledState.NOT_STARTED)
        case "running":
            return StillRunning(retry_after_of(response.running))
        case "done":
            return _ended(ReconciledState.DONE, response.done.result_json, took_effect=True)
        case "failed":
            failed = response.failed
            return _ended(ReconciledState.FAILED, failed.result_json, took_effect=failed.took_effect)
        case _:
            return Reconciled(state=ReconciledState.UNKNOWN)


def _ended(state: ReconciledState, text: str, *, took_effect: bool) -> Reconciled:
    """Returns the answer; with words in place of a result that cannot be passed on."""
    try:
        _check(text)
    except UnfitResult as unfit:
        words = json.dumps({"error": str(unfit)}, ensure_ascii=False)
        return Reconciled(state=ReconciledState.FAILED, result_json=words, took_effect=took_effect)
    took_effect = took_effect and state is ReconciledState.FAILED
    return Reconciled(state=state, result_json=text, took_effect=took_effect)


def _words(error: NotStarted | aio.AioRpcError) -> str:
    """Returns an error's own words, shortened."""
    if isinstance(error, NotStarted):
        return str(error)
    return f"{error.code().name}: {(error.details() or '')[:MOST_WORDS]}"
