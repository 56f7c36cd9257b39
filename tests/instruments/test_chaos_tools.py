"""Small runs of `make chaos-tools`: no effect is doubled, and each unknown outcome has an answer or a question."""

import json
from pathlib import Path

import pytest

from tests.instruments import program

KILLS = 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mute", [False, True])
async def test_a_tool_server_that_is_killed_doubles_no_effect(tmp_path: Path, mute: bool) -> None:
    report = tmp_path / "tools.json"
    how = ("--seed", "7", "--kills", str(KILLS), "--users", "6", *(["--mute"] if mute else []))
    status, output = await program.run("tests.chaos.tool_server", *how, "--report", report)
    assert report.exists(), output
    result = json.loads(report.read_text(encoding="utf-8"))
    assert (result["violations"], result["doubled_effects"], status) == ([], 0, 0), output
    assert result["kills_between_effect_and_answer"] >= KILLS, output
    if mute:
        assert set(result["answers"]) == {"NO_ANSWER"}, output
        assert result["questions_to_people"], output
    else:
        assert result["answers"].get("DONE"), output
