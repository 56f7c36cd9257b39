"""Measures what a model call pays for the tools that an agent is offered, in this process."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from tests.builders import AGENT
from turnkeeper.domain.message import Message, Role
from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.deadline_watch import Deadlines
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Toolbox

MANY: Final = 200
BYTES: Final = 500
"""Of a tool's schema."""
CALLS: Final = 400
FEW_CALLS: Final = 40
AGENT_OF_ALL: Final = replace(AGENT, tools=("*",))
ANSWER: Final = (
    'data: {"choices":[{"index":0,"delta":{"content":"so"},"finish_reason":"stop"}],"model":"m"}\n\ndata: [DONE]\n\n'
)


class _Tools:
    """A source of so many tools, which are never called."""

    listing = 1

    def __init__(self, count: int) -> None:
        self._specs = [_spec(number) for number in range(count)]

    def specs(self) -> Sequence[ToolSpec]:
        """Returns the tools."""
        return self._specs

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Is never called."""
        raise AssertionError("the script of this measure calls no tool")


def _spec(number: int) -> ToolSpec:
    schema = {"type": "object", "properties": {"text": {"type": "string", "description": ""}}}
    schema["title"] = "x" * (BYTES - len(json.dumps(schema)))
    return ToolSpec(
        name=f"tool_{number}",
        description=f"Does what is number {number}.",
        schema_json=json.dumps(schema),
        tool_class=ToolClass.READ_ONLY,
        source="python",
    )


async def tools(bench: Bench) -> list[Row]:
    """Measures model calls of an agent with 200 tools, by turns with those of an agent with one."""
    calls = FEW_CALLS if bench.scale.quick else CALLS
    few, many = Toolbox([_Tools(1)]), Toolbox([_Tools(MANY)])
    costs: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        model = OpenAIModel.connect(Provider(base_url=address, api_key="unused"), deadlines=Deadlines())
        for toolbox in (few, many):
            await _milliseconds(model, toolbox, 20)
        for _ in range(bench.scale.rounds):
            one = await _milliseconds(model, few, calls)
            costs.append(await _milliseconds(model, many, calls) - one)
        await model.close()
    about = f"CPU of a model call of an agent with {MANY} tools of {BYTES} bytes, above one with one tool"
    return [row("tools.200", about, costs, unit="ms")]


async def _milliseconds(model: OpenAIModel, toolbox: Toolbox, calls: int) -> float:
    messages = (Message(role=Role.USER, text="Hello."),)
    start = time.thread_time()
    for _ in range(calls):
        request = ModelRequest(model="m", messages=messages, tools=toolbox.offered(AGENT_OF_ALL))
        async for _ in model.stream(request):
            await asyncio.sleep(0)
    return 1e3 * (time.thread_time() - start) / calls


def _serve(listener: socket.socket) -> None:
    """Answers each request of each connection, in threads whose CPU time does not count."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the measure has ended
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
    with connection, connection.makefile("rb") as reader:
        while line := reader.readline():
            length = 0
            while line.strip():
                if match := re.fullmatch(rb"(?i)content-length: (\d+)\s*", line):
                    length = int(match[1])
                line = reader.readline()
            reader.read(length)
            connection.sendall(f"{head}{ANSWER}".encode())


MEASURES = (Measure("tools", "what many tools cost a model call", tools),)
