"""`agents check` warns of rules that need more people than the principals file has."""

from pathlib import Path

import pytest

from tests.identities import row
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.identity.principals import parse
from turnkeeper.terminal.app import run
from turnkeeper.terminal.eligible import warnings

ROWS = "".join(
    (
        row("bob", tenant="acme", roles=["approver"], groups=["finance"]),
        row("eve", tenant="acme", roles=["approver"], groups=["finance"]),
        row("kim", tenant="acme", roles=["caller"], groups=["finance"]),
        row("sue", tenant="acme", roles=["approver"]),
        row("joe", tenant="other", roles=["approver"]),
    )
)
AGENTS = """
[[agent]]
name = "payer"
tools = ["add"]
[[agent.policy]]
tool = "add"
[agent.policy.approve]
groups = ["finance"]
k = 3
"""


def warned(**approvers: object) -> list[str]:
    rule = PolicyRule(tool="pay_*", action=PolicyAction.APPROVE, approvers=Approvers(**approvers))  # type: ignore[arg-type]
    agents = {"payer": Agent(name="payer", model="m", policy=(rule,))}
    return warnings(agents, parse(Path("p.toml"), ROWS.encode()))


def test_a_rule_is_met_by_members_of_its_groups_and_by_its_principals_with_the_role() -> None:
    finance = frozenset({"finance"})
    assert warned(groups=finance, k=2) == [
        "payer, rule pay_*: needs 2 persons, and 0 with the role approver are eligible in tenant other"
    ]
    both = warned(groups=finance, k=3)
    assert "needs 3 persons, and 2 with the role approver are eligible in tenant acme" in both[0]
    assert len(warned(groups=finance, principals=frozenset({"sue", "joe"}), k=3)) == 1
    assert warned() == [], "any approver may decide"
    assert len(warned(k=1, veto=False, reject_at=4)) == 2


def test_the_command_prints_the_warning_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agents.toml").write_text(AGENTS)
    (tmp_path / "p.toml").write_text(ROWS)
    check = ["agents", "check", str(tmp_path / "agents.toml")]
    assert run([*check, "--principals", str(tmp_path / "p.toml")], ()) == 0
    written = capsys.readouterr()
    assert "payer, rule add: needs 3 persons, and 2 with the role" in " ".join(written.err.split())
    assert "is in order: payer" in " ".join(written.out.split())
    assert run(check, ()) == 0
    assert not capsys.readouterr().err
    assert run([*check, "--principals", str(tmp_path / "none.toml")], ()) == 1
