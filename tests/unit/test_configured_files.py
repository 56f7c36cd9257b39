"""The files of agents and tools are read again as a whole, or not at all."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from turnkeeper.configured_files import ConfiguredFiles
from turnkeeper.domain.agent import Agent
from turnkeeper.errors import AgentConfigError
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError

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
