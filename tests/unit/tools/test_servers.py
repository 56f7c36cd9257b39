"""The sources of tool servers: they run beside the turns, and a server that is down costs no start."""

import asyncio
from pathlib import Path
from typing import NoReturn

import pytest

from tests.unit.tools.servers import LocalServer
from turnkeeper.bootstrap import background
from turnkeeper.tools import catalogue
from turnkeeper.tools.catalogue import ToolServer
from turnkeeper.tools.contract import SourceUnreachable
from turnkeeper.tools.servers import ToolServers
from turnkeeper.watched_file import BadFile

TIME = '[[server]]\nname = "time"\nmcp = "stdio"\ntools = ["now"]\n'
DOWN = '[[server]]\nname = "down"\nmcp = "stdio"\nis_down = true\n'
READERS = {"mcp": LocalServer}


def servers_of(text: str) -> tuple[ToolServer, ...]:
    return tuple(catalogue.parse(Path("catalogue.toml"), text.encode()).servers)


async def test_sources_run_and_list_their_tools() -> None:
    servers = ToolServers(servers_of(TIME), READERS)
    (source,) = servers.sources
    assert isinstance(source, LocalServer)
    async with background(servers.run):
        await servers.listed.wait()
        assert source.is_running
        assert [spec.name for spec in source.specs()] == ["time__now"]
    assert not source.is_running


async def test_a_server_that_is_down_costs_no_start(caplog: pytest.LogCaptureFixture) -> None:
    servers = ToolServers(servers_of(TIME + DOWN), READERS)
    async with background(servers.run):
        await servers.listed.wait()
        assert servers.sources[0].specs()
        with pytest.raises(SourceUnreachable):
            servers.sources[1].specs()
    assert "the tool server down does not answer: its tools are offered as last listed" in caplog.text
    assert "nothing answers there" in caplog.text


async def test_a_server_that_lists_nothing_in_time_costs_that_time_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(LocalServer):
        async def refresh(self) -> None:
            await asyncio.get_running_loop().create_future()

    servers = ToolServers(servers_of(TIME), {"mcp": Silent})
    async with background(servers.run):
        await servers.refresh(wait=0.0)
    assert "no list within 0 s" in caplog.text


async def test_a_source_that_fails_by_a_defect_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(LocalServer):
        async def run(self) -> NoReturn:
            raise RuntimeError("a defect")

        async def refresh(self) -> NoReturn:
            raise RuntimeError("another one")

    servers = ToolServers(servers_of(TIME), {"mcp": Broken})
    async with background(servers.run):
        await servers.listed.wait()
    assert "failed by a defect of ours" in caplog.text


async def test_a_server_whose_table_stays_keeps_its_source() -> None:
    servers = ToolServers(servers_of(TIME + DOWN), READERS)
    time, down = servers.sources
    assert isinstance(time, LocalServer)
    assert isinstance(down, LocalServer)
    async with background(servers.run):
        await servers.listed.wait()
        servers.set(servers.with_sources(servers_of("\n" + TIME + DOWN.replace("true", "false"))))
        assert servers.sources[0] is time
        assert servers.sources[1] is not down
        await servers.refresh()
        await asyncio.sleep(0)
        assert (time.is_running, down.is_running) == (True, False)
        assert servers.sources[1].specs() == []


def test_a_kind_that_this_version_does_not_know_is_refused() -> None:
    with pytest.raises(BadFile, match=r"catalogue.toml:3: server time: mcp is a kind of server that this version"):
        ToolServers(servers_of(TIME), {})


def test_a_table_that_its_kind_cannot_read_is_named_with_its_line() -> None:
    with pytest.raises(BadFile, match=r"catalogue.toml:5: server.0.tolls: there is no such key; did you mean tools"):
        ToolServers(servers_of(f"{TIME}tolls = 1\n"), READERS)
