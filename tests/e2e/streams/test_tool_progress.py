"""How far a tool is: watchers of both replicas see it while the tool runs, wherever the tool comes from."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.contracts import suite_tools
from tests.contracts.tool_sources import STDIO_SERVER, write_list
from tests.mcp_servers import sdk_http
from tests.mcp_servers.suite_server import suite_server
from tests.tool_servers.served import served
from tests.tool_servers.suite import suite_service
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2
from turnkeeper.tools.python import PythonTools

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCES = ("", "stdio__", "http__", "grpc__")
"""What stands before the tool's name: one source of each kind."""
AGENTS = """
[[agent]]
name = "worker"
tools = ["*"]
policy = [{ tool = "*", action = "auto" }]
"""
REPLY = """
[[reply]]
match = '^{prefix}advance (?P<file>\\S+)'
tool_calls = [{{ name = "{prefix}advance", arguments = {{ file = "{{file}}" }} }}]
"""
SCRIPT = "".join(REPLY.format(prefix=prefix) for prefix in SOURCES) + "\n[[reply]]\nafter_tools = 1\ntext = 'Told.'\n"
CATALOGUE = """
[[server]]
name = "stdio"
mcp = "stdio"
command = ["{python}", "-I", "-S", "{program}", "{folder}"]

[[server]]
name = "http"
mcp = "http"
url = "{url}"
allow_http = true
allow_private = true

[[server]]
name = "grpc"
grpc = "{address}"
plaintext = true

[[tool]]
tool = "*"
class = "read_only"
"""


@dataclass(kw_only=True)
class Replicas:
    """Two servers of one database."""

    here: harness.Stubs
    there: harness.Stubs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replicas]:
    folder = tmp_path_factory.mktemp("progress")
    tools = PythonTools(suite_tools.TOOLS)
    write_list(folder, tools)
    (folder / "own.py").write_text("from tests.contracts.suite_tools import advance\n")
    (folder / "agents.toml").write_text(AGENTS)
    async with (
        sdk_http.serving(suite_server(lambda: tools).streamable_http_app()) as url,
        served(suite_service(tools)) as address,
        harness.scripted(SCRIPT) as model,
    ):
        stated = CATALOGUE.format(python=sys.executable, program=STDIO_SERVER, folder=folder, url=url, address=address)
        (folder / "catalogue.toml").write_text(stated)
        settings: dict[str, Any] = {"catalogue": folder / "catalogue.toml", "tools": folder / "own.py"}
        settings["agents"] = folder / "agents.toml"
        async with (
            harness.serving(mongo_uri, module_database, model, **settings) as one,
            harness.serving(mongo_uri, module_database, model, **settings) as other,
            harness.connect(one.address) as here,
            harness.connect(other.address) as there,
        ):
            yield Replicas(here=here, there=there)


class Watch:
    """The events that one stream has shown."""

    def __init__(self, call: Any) -> None:
        self.events: list[event_pb2.Event] = []
        self._call = call
        self._changed = asyncio.Condition()
        self.has_caught_up = False
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for response in self._call:
            async with self._changed:
                self.events += response.events
                self.has_caught_up |= response.caught_up
                self._changed.notify_all()

    async def until(self, kind: str) -> event_pb2.Event:
        """Returns the first event of this kind."""
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: kind in self.kinds)
        return next(event for event in self.events if event.WhichOneof("payload") == kind)

    async def caught_up(self) -> None:
        """Returns once the stream has caught up."""
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: self.has_caught_up)

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("payload")) for event in self.events]

    def end(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self.reading.cancel()


def watch(stubs: harness.Stubs, session: str, *, previews: bool = True) -> Watch:
    request = session_pb2.WatchEventsRequest(session_id=session, previews=previews, follow=True)
    return Watch(stubs.sessions.WatchEvents(request))


@pytest.mark.parametrize("prefix", SOURCES)
async def test_progress_comes_to_every_watcher_while_the_tool_runs(
    replicas: Replicas, prefix: str, tmp_path: Path
) -> None:
    here, go_on = replicas.here, tmp_path / "go-on"
    session = await harness.create_test_session(here, agent="worker")
    there, without = watch(replicas.there, session), watch(here, session, previews=False)
    await there.caught_up()
    message = chat_pb2.StreamMessageRequest(
        session_id=session,
        request_id=harness.new_request_id(),
        content=harness.text_parts(f"{prefix}advance {go_on}"),
        previews=True,
    )
    sender = Watch(here.chat.StreamMessage(message))
    started = await sender.until("tool_started")
    late = watch(here, session)
    for stream in (sender, there, late):
        event = await stream.until("tool_progress")
        assert (event.sequence, event.turn_id, event.attempt) == (0, started.turn_id, started.attempt)
        assert event.tool_progress.tool_call_id == started.tool_started.tool_call_id
        assert event.tool_progress.message.startswith("half way")
    latest = watch(here, session)
    await latest.until("tool_progress")
    go_on.touch()
    for stream in (sender, there, late, latest, without):
        await stream.until("turn_completed")
        stream.end()
        shown = [kind for kind in stream.kinds if kind.startswith("tool_")]
        expected = ["tool_called", "tool_started", "tool_progress", "tool_returned"]
        assert shown == [kind for kind in expected if stream is not without or kind != "tool_progress"]
    assert "tool_progress" not in harness.kinds(await harness.all_events(here, session)), "it is no history"
