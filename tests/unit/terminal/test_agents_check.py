"""`turnkeeper agents check` compares the agents with the catalogue, too, and connects to no server."""

import json
from pathlib import Path

import pytest

from turnkeeper.command_line import main

AGENTS = '[[agent]]\nname = "clerk"\ntools = ["add"]\n'


@pytest.mark.parametrize(
    ("catalogue", "status", "message"),
    [
        ('[[tool]]\ntool = "add"\nattempts = 2\n', 0, ""),
        (
            '[[tool]]\ntool = "add"\nagents = ["desk"]\n',
            1,
            "tools names 'add', which the [[tool]] 'add' of the catalogue",
        ),
        ('[[tool]]\ntool = "add"\natempts = 2\n', 1, "catalogue.toml:3: tool.0.atempts: there is no such key; did you"),
    ],
)
def test_the_catalogue_is_checked_with_the_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], catalogue: str, status: int, message: str
) -> None:
    agents, file = tmp_path / "agents.toml", tmp_path / "catalogue.toml"
    agents.write_text(AGENTS)
    file.write_text(catalogue)
    assert main(["agents", "check", str(agents), "--catalogue", str(file), "--json"]) == status
    finding = json.loads(capsys.readouterr().out)
    assert finding["ok"] is (status == 0)
    assert message in finding["message"]
