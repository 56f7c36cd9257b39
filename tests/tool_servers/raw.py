"""A tool server that does exactly what a test wants, without any helper."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc import aio

from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.pb.tools.v1.tool_pb2_grpc import ToolServiceServicer, add_ToolServiceServicer_to_server

Answer = Callable[[tool_pb2.CallToolRequest, Any], AsyncIterator[tool_pb2.CallToolResponse]]


def result(text: str, *, failed: bool = False) -> tool_pb2.CallToolResponse:
    """Returns a response with this result."""
    return tool_pb2.CallToolResponse(result=tool_pb2.Result(result_json=text, failed=failed))


def progress(line: str = "on the way") -> tool_pb2.CallToolResponse:
    """Returns a response with this progress."""
    return tool_pb2.CallToolResponse(progress=tool_pb2.Progress(message=line))


def aborts(code: grpc.StatusCode, *before: tool_pb2.CallToolResponse) -> Answer:
    """Returns an answer that ends with a status, after these responses."""

    async def answer(_: tool_pb2.CallToolRequest, context: Any) -> AsyncIterator[tool_pb2.CallToolResponse]:
        for response in before:
            yield response
        await context.abort(code, "so it is")

    return answer


def answers(*responses: tool_pb2.CallToolResponse) -> Answer:
    """Returns an answer of these responses."""

    async def answer(_: tool_pb2.CallToolRequest, __: Any) -> AsyncIterator[tool_pb2.CallToolResponse]:
        for response in responses:
            yield response

    return answer


class RawServer(ToolServiceServicer):
    """Its tools, its answers and what it received are open."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.tools = [tool_pb2.Tool(name="transfer", description="Moves.", schema_json='{"type":"object"}')]
        self.answer = answer or answers(result('"moved"'))
        self.reconciled: tool_pb2.ReconcileResponse | grpc.StatusCode = grpc.StatusCode.UNIMPLEMENTED
        self.calls: list[tuple[tool_pb2.CallToolRequest, dict[str, Any]]] = []
        self.cancelled = asyncio.Event()
        self.times: list[float] = []
        """Seconds that were left of each call's time."""

    def add_to(self, server: aio.Server) -> None:
        add_ToolServiceServicer_to_server(self, server)

    async def ListTools(self, request: tool_pb2.ListToolsRequest, context: Any) -> tool_pb2.ListToolsResponse:
        return tool_pb2.ListToolsResponse(tools=self.tools)

    async def CallTool(
        self, request: tool_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_pb2.CallToolResponse]:
        self.calls.append((request, dict(context.invocation_metadata())))
        self.times.append(context.time_remaining())
        try:
            async for response in self.answer(request, context):
                yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Reconcile(self, request: tool_pb2.ReconcileRequest, context: Any) -> tool_pb2.ReconcileResponse:
        if isinstance(self.reconciled, grpc.StatusCode):
            await context.abort(self.reconciled, "so it is")
        assert isinstance(self.reconciled, tool_pb2.ReconcileResponse)
        return self.reconciled
