"""A small run of `make chaos-approvals`: its promises hold, and enough of each came out."""

import json
from pathlib import Path

import pytest

from tests.instruments import program

APPROVALS = 60


@pytest.mark.timeout(300)
async def test_raced_approvals_end_once_by_those_who_may(tmp_path: Path) -> None:
    report = tmp_path / "approvals.json"
    how = ("--seed", "7", "--approvals", str(APPROVALS))
    status, output = await program.run("tests.chaos.approvals", *how, "--report", report, "--folder", tmp_path / "run")
    assert report.exists(), output
    result = json.loads(report.read_text(encoding="utf-8"))
    assert result["violations"] == {}, output
    assert result["missed"] == [], output
    assert result["not_checked"] == [], output
    assert status == 0, output
    assert result["raced"] == APPROVALS, output
