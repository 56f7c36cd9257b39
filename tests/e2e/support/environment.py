"""The environment of an end-to-end test: a server, its database, a scripted model, recorded tools."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import harness
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import event_pb2, session_pb2
from turnkeeper_client import Client, Credentials

AGENTS = Path(__file__).with_name("agents.toml")


@dataclass(slots=True, kw_only=True)
class Environment:
    """The server that the tests of a module share. Each test has its own session, and messages of its own."""

    mongo_uri: str
    database: str
    address: str
    model: ScriptedModel
    stubs: harness.Stubs
    tool_control: ToolControl
    settings: dict[str, Any] = field(default_factory=dict)

    def model_requests(self, words: str) -> list[list[dict[str, Any]]]:
        """Returns the messages of each request to the model that has these words, in order."""
        requests = [json.loads(exchange.body)["messages"] for exchange in self.model.exchanges.all()]
        return [messages for messages in requests if any(words in (message["content"] or "") for message in messages)]

    async def wait_for_model_requests(self, words: str, *, times: int = 1) -> None:
        """Waits until the model got so many requests with these words."""
        await self.model.exchanges.until(lambda _: len(self.model_requests(words)) >= times)

    @contextlib.asynccontextmanager
    async def another(self, **settings: Any) -> AsyncIterator[harness.Stubs]:
        """Starts a second server on the same database and model."""
        chosen: dict[str, Any] = {"agents": AGENTS, **self.settings, **settings}
        async with (
            harness.serving(self.mongo_uri, self.database, self.model, **chosen) as running,
            harness.connect(running.address) as stubs,
        ):
            yield stubs


def client_of(address: str) -> Client:
    """Returns a Python client for the tests' caller."""
    return Client(address, credentials=Credentials(token=harness.token))


async def until_event(stubs: harness.Stubs, session_id: str, kind: str, *, turn_id: str = "") -> event_pb2.Event:
    """Waits for the session's first event of this kind, previews included, and returns it."""
    async with asyncio.timeout(15):
        watch = stubs.sessions.WatchEvents(
            session_pb2.WatchEventsRequest(session_id=session_id, follow=True, previews=True, turn_id=turn_id)
        )
        try:
            async for response in watch:
                for event in response.events:
                    if event.WhichOneof("payload") == kind:
                        return event
        finally:
            watch.cancel()
    raise AssertionError(f"the stream ended without {kind}")


def transcript(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a request's messages in short: `user: hello`, `assistant: …`, `call: add`, `tool: 3`."""
    lines: list[str] = []
    for message in messages:
        if message.get("content"):
            lines.append(f"{message['role']}: {message['content']}")
        lines.extend(f"call: {call['function']['name']}" for call in message.get("tool_calls", ()))
    return lines


def check_pairs(messages: Sequence[dict[str, Any]]) -> None:
    """Asserts that each tool call has one result before the next message, and no result is without a call (I16)."""
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in open_calls, f"a result without its call in {messages}"
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, f"calls without a result in {messages}"
        open_calls = {call["id"] for call in message.get("tool_calls", ())}
    assert not open_calls, f"calls without a result in {messages}"
