"""The files of agents and tools are read again as a whole, or not at all."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.unit.tools.servers import LocalServer
from turnkeeper.bootstrap import background
from turnkeeper.configured_files import ConfiguredFiles
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.tool import ToolClass
from turnkeeper.errors import AgentConfigError
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError
from turnkeeper.watched_file import BadFile

TOOLS = "from turnkeeper.tools import tool\n@tool\ndef refund(number: str) -> str: return number\n"
AGENTS = '[[agent]]\nname = "desk"\ntools = ["refund"]\n'


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ConfiguredFiles]:
    (tmp_path / "desk.py").write_text(TOOLS)
    (tmp_path / "desk.toml").write_text(AGENTS)
    before = list(sys.path)
    files = ConfiguredFiles(Settings(tools=tmp_path / "desk.py", agents=tmp_path / "desk.toml"))
    files.read_agents(default_model="small")
    yield files
    sys.path[:] = before
    sys.modules.pop("desk.py", None)


def accept(_: Iterable[Agent]) -> None:
    """Accepts all agents."""


async def test_tools_that_the_agents_do_not_fit_are_not_taken(files: ConfiguredFiles, tmp_path: Path) -> None:
    desk = files.toolbox.find(files.agents["desk"], "refund")
    (tmp_path / "desk.py").write_text(TOOLS.replace("refund", "pay_back"))
    with pytest.raises(AgentConfigError, match="tools names 'refund', and no source has such a tool"):
        await files.reload(accept)
    assert files.toolbox.find(files.agents["desk"], "refund") == desk
    (tmp_path / "desk.toml").write_text(AGENTS.replace("refund", "pay_back"))
    shared = files.agents
    await files.reload(accept)
    assert shared["desk"].tools == ("pay_back",)
    assert files.toolbox.find(shared["desk"], "pay_back") is not None
    assert "refund" not in files.toolbox.names


async def test_agents_whose_model_cannot_be_called_are_not_taken(files: ConfiguredFiles, tmp_path: Path) -> None:
    def refuse(_: Iterable[Agent]) -> None:
        raise SettingError("agent desk: the model's address is no URL")

    (tmp_path / "desk.py").write_text(TOOLS.replace("number", "order"))
    (tmp_path / "desk.toml").write_text(AGENTS + 'instructions = "Be brief."\n')
    with pytest.raises(SettingError):
        await files.reload(refuse)
    assert files.agents["desk"].instructions == ""
    spec = files.toolbox.find(files.agents["desk"], "refund")
    assert spec is not None
    assert "number" in spec.schema_json


SERVERS = """
[[server]]
name = "time"
mcp = "stdio"
tools = ["now"]

[[tool]]
tool = "time__*"
class = "read_only"
"""


async def test_the_catalogue_is_read_again_with_the_others(files: ConfiguredFiles, tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(SERVERS)
    (tmp_path / "desk.toml").write_text(AGENTS.replace('"refund"', '"refund", "time__*"'))
    settings = Settings(tools=tmp_path / "desk.py", agents=tmp_path / "desk.toml", catalogue=path)
    files = ConfiguredFiles(settings, server_readers={"mcp": LocalServer})
    async with background(files.servers.run):
        await files.servers.listed.wait()
        files.read_agents(default_model="small")
        desk = files.agents["desk"]
        assert [spec.name for spec in files.toolbox.offered(desk)] == ["refund", "time__now"]
        (source,) = files.servers.sources

        path.write_text(SERVERS.replace("read_only", "forbidden"))
        await files.reload(accept)
        assert [spec.name for spec in files.toolbox.offered(desk)] == ["refund"]
        assert list(files.servers.sources) == [source], "the server goes on: its table is the same"

        path.write_text(SERVERS.replace('"now"', '"zone"'))
        await files.reload(accept)
        assert [spec.name for spec in files.toolbox.offered(desk)] == ["refund", "time__zone"]

        path.write_text(SERVERS.replace("mcp =", "mpc ="))
        with pytest.raises(BadFile, match=r"catalogue.toml:3: server time: name needs one of mcp and grpc"):
            await files.reload(accept)
        (tmp_path / "desk.py").write_text(TOOLS + TOOLS.replace("refund", "time__zone"))
        path.write_text(SERVERS.replace('"now"', '"zone"').replace("read_only", "idempotent"))
        with pytest.raises(AgentConfigError, match="Two sources have a tool named time__zone"):
            await files.reload(accept)
        spec = files.toolbox.find(desk, "time__zone")
        assert spec is not None
        assert (spec.source, spec.tool_class) == ("time", ToolClass.READ_ONLY)


async def test_a_servers_tool_with_another_ones_name_refuses_the_start(files: ConfiguredFiles, tmp_path: Path) -> None:
    (tmp_path / "catalogue.toml").write_text(SERVERS)
    (tmp_path / "desk.py").write_text(TOOLS.replace("refund", "time__now"))
    settings = Settings(tools=tmp_path / "desk.py", catalogue=tmp_path / "catalogue.toml")
    files = ConfiguredFiles(settings, server_readers={"mcp": LocalServer})
    async with background(files.servers.run):
        await files.servers.listed.wait()
        with pytest.raises(AgentConfigError, match="Two sources have a tool named time__now, python and time"):
            files.read_agents(default_model="small")
