"""Agents that name a tool which the catalogue does not let them use are refused, with the line."""

from pathlib import Path

import pytest

from tests.unit.tools.servers import LocalServer
from turnkeeper import agents_file
from turnkeeper.errors import AgentConfigError
from turnkeeper.tools import catalogue, samples
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

ONE = '[[agent]]\nname = "clerk"\n'


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        (
            "'time__zone'",
            "agent 1 (clerk): tools names 'time__zone', which no [[tool]] of the catalogue covers",
        ),
        ("'add'", "agent 1 (clerk): tools names 'add', which the [[tool]] 'add' of the catalogue keeps from it."),
        ("'time__now'", ""),
        ("'time__*', 'a*'", ""),
    ],
)
def test_a_tool_that_the_catalogue_does_not_let_the_agent_use(tmp_path: Path, tools: str, reason: str) -> None:
    servers, entries = '[[server]]\nname = "time"\nmcp = "stdio"\n', '[[tool]]\ntool = "time__n*"\n'
    text = f'{servers}{entries}[[tool]]\ntool = "add"\nagents = ["desk"]'
    content = catalogue.parse(Path("catalogue.toml"), text.encode())
    server = LocalServer(content.servers[0])
    toolbox = Toolbox([PythonTools([samples.add]), server], catalogue=content)
    file = tmp_path / "agents.toml"
    file.write_text(f"{ONE}tools = [{tools}]")
    if not reason:
        agents_file.load(file, default_model="small", toolbox=toolbox)
        return
    with pytest.raises(AgentConfigError) as refused:
        agents_file.load(file, default_model="small", toolbox=toolbox)
    assert f"{file}:3: {reason}" in str(refused.value)
