"""A short chaos with a fixed seed: servers and primaries die, commits lose their answers, and every promise holds.

`make chaos` is the long one, with every kind of fault and with least figures that it must reach; see
docs/operations/guarantees.md.
"""

import json
from pathlib import Path

import pytest

from tests.instruments import program

KINDS = ("server-kill", "server-overload", "primary-kill", "commit-reply-lost", "client-cut", "command-cut")


@pytest.mark.timeout(240)
async def test_every_promise_holds_in_a_short_chaos(tmp_path: Path) -> None:
    report = tmp_path / "chaos.json"
    how = ("--seed", "7", "--minutes", "0.35", "--only", ",".join(KINDS), "--sessions", "12")
    _, output = await program.run("tests.chaos", *how, "--report", report, "--folder", tmp_path / "run")
    assert report.exists(), output
    result = json.loads(report.read_text(encoding="utf-8"))
    assert not any(result["violations_by_promise"].values()), output
    assert result["acknowledged_turns"] > 0, output
    assert result["takeovers"] > 0, output
    assert {kind for kind, row in result["faults_by_kind"].items() if row["confirmed"]} >= {
        "server-kill",
        "server-overload",
    }, output
