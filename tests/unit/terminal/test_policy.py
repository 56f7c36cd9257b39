"""`turnkeeper policy test` with a file: the rules of the file, read by the same function as EvaluatePolicy."""

import json
from pathlib import Path

import pytest

from turnkeeper.command_line import main

RULES = """
[[agent]]
name = "clerk"
tools = ["send_message", "add"]

[[agent.policy]]
tool = "send_message"
name = "strangers"
when = "!args.to.endsWith('@example.com') && !('trusted' in groups)"
note = "Who is it?"
approve = { k = 2 }

[[agent.policy]]
tool = "*"
action = "auto"
"""
TO_ADA = '{"to": "ada", "text": "hello"}'


def tried(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Returns the exit status, and both outputs."""
    status = main(["policy", "test", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "agents.toml"
    path.write_text(RULES)
    return str(path)


def test_it_shows_the_rule_that_decides_and_why(rules: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = tried(capsys, "clerk", "send_message", TO_ADA, "--file", rules)
    assert (status, out.split()[:2]) == (0, ["approve", "strangers"])
    assert "k = 2" in out
    assert "Who is it?" in out


@pytest.mark.parametrize(
    ("flags", "action"),
    [
        ([], "POLICY_ACTION_APPROVE"),
        (["--group", "trusted"], "POLICY_ACTION_AUTO"),
        (["--group", "trusted", "--untrusted"], "POLICY_ACTION_APPROVE"),
    ],
)
def test_its_json_is_the_response_of_the_rpc(
    rules: str, capsys: pytest.CaptureFixture[str], flags: list[str], action: str
) -> None:
    status, out, _ = tried(capsys, "clerk", "send_message", TO_ADA, "--file", rules, "--json", *flags)
    assert (status, json.loads(out)["action"]) == (0, action)


def test_the_classes_of_a_catalogue_count(rules: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(rules).write_text('[[agent]]\nname = "clerk"\ntools = ["add"]\n')
    (tmp_path / "catalogue.toml").write_text('[[tool]]\ntool = "add"\nclass = "irreversible"\n')
    flags = ["clerk", "add", '{"a": 1, "b": 2}', "--file", rules]
    assert tried(capsys, *flags)[1].startswith("auto")
    assert tried(capsys, *flags, "--catalogue", str(tmp_path / "catalogue.toml"))[1].startswith("approve")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["clerk", "send_message", '{"to": 5}'], "to: 5 is not of type 'string'"),
        (["manager", "add"], "has no agent manager; it has clerk."),
        (["clerk", "add", "{}", "--label", "team"], "--label team has no value: write NAME=VALUE."),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(
    rules: str, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    status, _, err = tried(capsys, *arguments, "--file", rules)
    assert status != 0
    assert problem in err


def test_tools_and_groups_belong_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = tried(capsys, "clerk", "add", "--group", "x")
    assert status != 0
    assert "--tools, --catalogue and --group need --file" in err
