"""The catalogue's file is followed while a server runs: a bad one changes nothing, and no call under way ends early."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.builders import a_call, a_session_key
from tests.processes import until
from tests.unit.tools.servers import LocalServer
from turnkeeper.bootstrap import background
from turnkeeper.configured_files import ConfiguredFiles
from turnkeeper.domain.tool import CallState, ToolOutcome
from turnkeeper.settings import Settings
from turnkeeper.tools.catalogue import ToolServer

AGENTS = '[[agent]]\nname = "desk"\ntools = ["*"]\n'
SERVER = """
[[server]]
name = "{name}"
mcp = "stdio"
tools = ["{tool}"]
"""
ENTRY = '[[tool]]\ntool = "*__*"\nclass = "read_only"\n'
TIME = SERVER.format(name="time", tool="now")


@dataclass(kw_only=True)
class Followed:
    """The files of a server that runs, and what was reported of them."""

    files: ConfiguredFiles
    path: Path
    created: list[LocalServer]
    """The sources of all servers' tables that were read."""
    reports: list[tuple[str, str]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.files.toolbox.offered(self.files.agents["desk"]) if "__" in spec.name]

    @property
    def source(self) -> LocalServer:
        (source,) = self.files.servers.sources
        assert isinstance(source, LocalServer)
        return source

    async def write(self, content: str) -> str:
        """Writes a catalogue, and returns what becomes of it."""
        before = len(self.reports)
        self.path.write_text(content)
        await until(lambda: len(self.reports) > before)
        (name, outcome) = self.reports[-1]
        assert name == "catalogue"
        return outcome


@pytest_asyncio.fixture
async def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Followed]:
    monkeypatch.setattr("turnkeeper.watched_file.CHECK_EVERY", 0.01)
    monkeypatch.setattr("turnkeeper.watched_file.STANDS_STILL", 0.01)
    (tmp_path / "desk.toml").write_text(AGENTS)
    path = tmp_path / "catalogue.toml"
    path.write_text(TIME + ENTRY)
    created: list[LocalServer] = []

    def source_of(server: ToolServer) -> LocalServer:
        created.append(LocalServer(server))
        return created[-1]

    files = ConfiguredFiles(
        Settings(agents=tmp_path / "desk.toml", catalogue=path), is_followed=True, server_readers={"mcp": source_of}
    )
    followed = Followed(files=files, path=path, created=created)
    files.report_to(lambda name, outcome: followed.reports.append((name, outcome)))
    async with background(files.servers.run, files.follow):
        await files.servers.listed.wait()
        files.read_agents(default_model="small")
        yield followed


async def test_a_changed_catalogue_is_in_effect_without_a_restart(followed: Followed) -> None:
    kept = followed.source
    assert followed.names == ["time__now"]
    assert await followed.write(TIME + ENTRY.replace("read_only", "forbidden")) == "LOADED"
    assert followed.names == []
    assert followed.source is kept, "the server goes on: its table is the same"
    assert await followed.write(SERVER.format(name="time", tool="zone") + ENTRY) == "LOADED"
    assert followed.names == ["time__zone"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[server]\n", "catalogue.toml:1: this is not TOML"),
        (TIME.replace("mcp", "mpc") + ENTRY, "needs one of mcp and grpc"),
        (TIME + TIME + ENTRY, "is that of a server before"),
        (TIME + ENTRY.replace("*__*", "*").replace("read_only", "harmless"), "class"),
    ],
)
async def test_a_bad_catalogue_keeps_the_one_before(
    followed: Followed, content: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = followed.source
    assert await followed.write(content) == "REFUSED"
    assert "catalogue not reloaded, the last good ones stay in effect" in caplog.text
    assert words in caplog.text
    assert (followed.names, followed.source, kept.is_running) == (["time__now"], kept, True)
    assert await followed.write(TIME + ENTRY.replace("read_only", "idempotent")) == "LOADED"
    assert followed.source is kept


async def test_a_catalogue_that_todays_agents_do_not_fit_is_refused(
    followed: Followed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"*"', '"time__now"'))
    assert await followed.write(SERVER.format(name="clock", tool="now") + ENTRY) == "REFUSED"
    assert "tools names 'time__now', and no source has such a tool" in caplog.text
    assert followed.names == ["time__now"]
    await asyncio.sleep(0)
    assert followed.source.is_running, "it was to be stopped, and goes on"


async def test_a_call_under_way_ends_under_the_catalogue_that_it_began_under(followed: Followed) -> None:
    before, done = followed.source, asyncio.get_running_loop().create_future()
    before.answer = lambda _name, _arguments: done
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, started=True)
    running = asyncio.create_task(followed.files.toolbox.run(call))
    await asyncio.sleep(0)
    assert await followed.write(SERVER.format(name="time", tool="zone") + ENTRY) == "LOADED"
    assert followed.source is not before
    assert before.is_running, "its call still runs"
    done.set_result('"noon"')
    finished = await running
    assert (finished.result.outcome, finished.result.result_json) == (ToolOutcome.OK, '"noon"')
    await until(lambda: not before.is_running)


async def test_a_refused_catalogue_does_not_stop_the_server_of_a_call_under_way(
    followed: Followed, tmp_path: Path
) -> None:
    source, done = followed.source, asyncio.get_running_loop().create_future()
    source.answer = lambda _name, _arguments: done
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, started=True)
    running = asyncio.create_task(followed.files.toolbox.run(call))
    await asyncio.sleep(0)
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"*"', '"time__now"'))
    assert await followed.write(ENTRY) == "REFUSED"
    done.set_result('"noon"')
    await running
    assert await followed.write(TIME + ENTRY.replace("read_only", "idempotent")) == "LOADED"
    assert followed.source is source
    assert source.is_running


async def test_a_refused_catalogue_stops_no_server(followed: Followed, tmp_path: Path) -> None:
    source = followed.source
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"*"', '"time__now"'))
    assert await followed.write(SERVER.format(name="clock", tool="now") + ENTRY) == "REFUSED"
    assert await followed.write(TIME + ENTRY.replace("read_only", "idempotent")) == "LOADED"
    assert (followed.source, source.runs, source.is_running) == (source, 1, True)


async def test_the_new_servers_of_a_refused_catalogue_are_stopped(followed: Followed, tmp_path: Path) -> None:
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"*"', '"time__now"'))
    assert await followed.write(SERVER.format(name="clock", tool="now") + ENTRY) == "REFUSED"
    clock = followed.created[-1]
    assert (clock.name, clock.runs) == ("clock", 1)
    await until(lambda: not clock.is_running)


async def test_nothing_has_changed_until_new_servers_have_listed_their_tools(
    followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A READY call of a tool that is only not listed yet would be closed."""
    source, gate = followed.source, asyncio.Event()
    monkeypatch.setitem(LocalServer.gates, "time", gate)
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"*"', '"time__now"'))
    for tool, outcome in (("zone", "REFUSED"), ("now", "LOADED")):
        gate.clear()
        changed = f"{SERVER.format(name='time', tool=tool)}is_down = false\n{ENTRY}"
        writing = asyncio.create_task(followed.write(changed))
        await until(lambda: LocalServer.waiting == 1)
        assert (followed.names, followed.source, source.is_running) == (["time__now"], source, True)
        gate.set()
        assert await writing == outcome
    assert followed.names == ["time__now"]
    assert followed.source is not source
    await until(lambda: not source.is_running)
    assert followed.source.is_running


async def test_a_server_that_is_gone_and_runs_no_call_is_stopped(followed: Followed) -> None:
    before = followed.source
    assert await followed.write(ENTRY) == "LOADED"
    await until(lambda: not before.is_running)
    assert followed.names == []
