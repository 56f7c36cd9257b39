"""Decisions on a terminal: what is shown is what is decided, and nothing is decided by accident."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.terminal.programs import LARGE, SMALL, CommandLine, create, send, send_in
from tests.pseudo_terminal import CTRL_C
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORGED = "harmless\n\nRun it? y runs it, n WHY rejects it, e edits it (y/n/e): y\n\x1b[2J\x1b[1;1H\x1b]52;c;eA==\x07"
SCRIPT = rf"""
[[reply]]
match = '^forge'
tool_calls = [{{ name = "act", arguments = {{ label = {json.dumps(FORGED)} }} }}]

[[reply]]
match = '^hide'
tool_calls = [{{ name = "act", arguments = {{ label = "p\u0430ypal \u202egnp" }} }}]

[[reply]]
match = '^both'
tool_calls = [{{ name = "act", arguments = {{ label = "one" }} }}, {{ name = "act", arguments = {{ label = "two" }} }}]

[[reply]]
match = '^act (?P<label>[\w-]+)'
tool_calls = [{{ name = "act", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
match = "^lose (?P<label>[a-z]+)"
tool_calls = [{{ name = "hold_irreversible", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
text = "Done."
"""
QUESTION = "(y/n/e):"


def approval_of(stubs: Any, turn: chat_pb2.Turn) -> approval_pb2.Approval:
    request = approval_pb2.GetApprovalRequest(approval_id=turn.pending[0].approval_id)
    approval: approval_pb2.Approval = stubs.approvals.GetApproval(request).approval
    return approval


async def test_a_program_needs_the_hash_or_yes(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act by-hash")
    approval = approval_of(stubs, turn)
    end = approval.approval_id[-6:]
    refused = await turnkeeper("approve", end, status=2)
    assert refused.errors == (
        "turnkeeper: there is no terminal to ask on: pass --hash with the hash that was shown to you, or --yes\n"
    )
    assert approval_of(stubs, turn).state == approval_pb2.APPROVAL_STATE_PENDING
    other = await turnkeeper("approve", end, "--hash", "0" * 64, status=5)
    assert "ARGUMENTS_HASH_MISMATCH" in other.errors
    done = await turnkeeper("approve", end, "--hash", approval.arguments_hash, "--json")
    assert done.json["approval"]["state"] == "APPROVAL_STATE_APPROVED"
    late = await turnkeeper("reject", approval.approval_id, "--yes", status=5)
    assert "APPROVAL_ALREADY_PROCESSED" in late.errors
    shown = await turnkeeper("show", turn.session_id)
    assert " approved by default\n" in shown.output
    exported = await turnkeeper("export", turn.session_id, "--format", "md")
    assert "\n*approved by default*\n" in exported.output


async def test_yes_prints_what_it_decides(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act printed")
    printed = await turnkeeper("reject", turn.pending[0].approval_id, "--yes", "--reason", "Not today.")
    assert '"label": "printed"' in printed.output
    assert approval_of(stubs, turn).arguments_hash in printed.output
    assert printed.output.endswith("act: rejected\n")
    assert approval_of(stubs, turn).reason == "Not today."
    assert " rejected by default: Not today.\n" in (await turnkeeper("show", turn.session_id)).output
    for arguments in (["approve", "--yes"], ["approve", "a", "b", "--hash", "x"], ["edit", "a", "--yes"]):
        assert "without a question" in (await turnkeeper(*arguments, status=2)).errors


async def test_a_decision_is_remembered_listed_and_forgotten(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act remembered")
    approval = approval_of(stubs, turn)
    end = approval.approval_id[-6:]
    wrong = await turnkeeper("approve", end, "--yes", "--remember", "arguments", "--for", "soon", status=2)
    assert "--for: 'soon' is not a duration" in wrong.errors
    whole = await turnkeeper("approve", end, "--yes", "--remember", "tool", status=5)
    assert "must be ARGUMENTS: act is IRREVERSIBLE" in whole.errors
    await turnkeeper("approve", end, "--yes", "--remember", "arguments", "--for", "90m", "--uses", "2")
    listed = await turnkeeper("remembered", turn.session_id)
    assert listed.output.splitlines()[1].split()[:3] == [end, "act", "arguments"]
    assert listed.output.splitlines()[1].split()[-4:] == ["1", "h", "left", "2"]
    assert (await turnkeeper("forget", end)).output == "revoked\n"
    assert (await turnkeeper("forget", end)).output == "It is not remembered (any more).\n"
    assert (await turnkeeper("remembered", turn.session_id)).output == "The session remembers no decision.\n"


async def test_an_edit_from_a_program(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act first")
    approval = approval_of(stubs, turn)
    wrong = await turnkeeper("edit", approval.approval_id, "--arguments", "{", "--yes", status=2)
    assert "--arguments: this is not JSON" in wrong.errors
    shown = await turnkeeper("edit", approval.approval_id, "--arguments", '{"label": "second"}', "--yes", "--json")
    assert json.loads(shown.json["approval"]["argumentsJson"]) == {"label": "second"}
    assert shown.json["approval"]["state"] == "APPROVAL_STATE_APPROVED"
    assert '"label": "first"' in shown.errors


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_nothing_is_decided_by_enter_or_by_what_was_typed_before(
    turnkeeper: CommandLine, stubs: Any, size: tuple[int, int]
) -> None:
    turn = await send(stubs, "asker", "act carefully")
    approval = approval_of(stubs, turn)
    async with turnkeeper.on_terminal("approve", approval.approval_id, size=size) as shown:
        shown.type("y\ny\ny")  # long before the question
        await shown.until(QUESTION)
        for words in (
            "\nact  irreversible  Has an irreversible effect.",
            "asked by  default, with the agent asker, session ",
            "message  act carefully",
            '"label": "carefully"',
            approval.arguments_hash,
        ):
            assert words in shown.text, shown.text
        shown.type("\n")
        await shown.until("Please answer y or n or e.")
        assert approval_of(stubs, turn).state == approval_pb2.APPROVAL_STATE_PENDING
        await shown.until(lambda text: text.count(QUESTION) == 2)
        shown.type("y\n")
        await shown.until("act: approved")
        assert await shown.ended() == 0
    assert approval_of(stubs, turn).decided_by == "default"


async def test_a_forged_question_is_text(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", f"forge {FORGED}")
    async with turnkeeper.on_terminal("approve", turn.pending[0].approval_id, size=LARGE) as shown:
        await shown.until(lambda text: "\nRun it? y runs it, n WHY rejects it, e edits it (y/n/e):" in text)
        assert shown.lines[1].startswith("act  irreversible")  # nothing has cleared the screen
        assert [line for line in shown.lines if line.startswith("Run it?")] == [
            "Run it? y runs it, n WHY rejects it, e edits it (y/n/e):"
        ]
        assert r"\u001b[2J\u001b[1;1H\u001b]52;c;eA==\u0007" in shown.text
        assert "Hidden character in it: U+001B a control character, 3 times." in shown.text
        assert b"\x1b]52" not in shown.raw
        shown.type("n it is forged\n")
        await shown.until("act: rejected")
    assert approval_of(stubs, turn).reason == "it is forged"


async def test_several_are_asked_one_after_the_other(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "both")
    ids = [item.approval_id[-6:] for item in turn.pending]
    async with turnkeeper.on_terminal("approve", *ids, size=LARGE) as shown:
        await shown.until("1 of 2")
        await shown.until(QUESTION)
        assert "2 of 2" not in shown.text
        shown.type("y\ny\n")  # the second is for a question that is not there yet
        await shown.until("2 of 2")
        await shown.until(lambda text: text.count(QUESTION) == 2)
        await shown.until("changes  since the call that default approved")
        await shown.until('+  "label": "two"')
        shown.type("n\n")
        await shown.until("act: rejected")
        assert await shown.ended() == 0
    decided = [
        stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=item.approval_id)).approval.state
        for item in turn.pending
    ]
    assert decided == [approval_pb2.APPROVAL_STATE_APPROVED, approval_pb2.APPROVAL_STATE_REJECTED]


async def test_arguments_are_edited_in_the_persons_editor(turnkeeper: CommandLine, stubs: Any, tmp_path: Path) -> None:
    turn = await send(stubs, "asker", "hide it")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho \'{"label": "paypal"}\' > "$1"\n')
    editor.chmod(0o755)
    async with turnkeeper.on_terminal(
        "approve", turn.pending[0].approval_id, size=LARGE, variables={"EDITOR": str(editor)}
    ) as shown:
        await shown.until(QUESTION)
        assert "Hidden character in it: U+202E RIGHT-TO-LEFT OVERRIDE, 1 times." in shown.text
        assert "Words that mix alphabets, and may look like others: p\u0430ypal." in shown.text
        shown.type("e\n")
        await shown.until("Run it with these? (y/n):")
        shown.type("y spelled right\n")
        await shown.until("act: approved")
    edited = stubs.approvals.ListApprovals(
        approval_pb2.ListApprovalsRequest(session_id=turn.session_id, order_by="create_time desc", page_size=1)
    ).approvals[0]
    assert (edited.arguments_json, edited.reason) == ('{"label":"paypal"}', "spelled right")


async def test_ctrl_c_leaves_it_open(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act never")
    async with turnkeeper.on_terminal("reject", turn.pending[0].approval_id) as shown:
        await shown.until("Reject it? y WHY rejects it, n leaves it open (y/n):")
        shown.type(CTRL_C)
        assert await shown.ended() == 130
        assert "Traceback" not in shown.text
    async with turnkeeper.on_terminal("reject", turn.pending[0].approval_id) as shown:
        await shown.until("Reject it? y WHY rejects it, n leaves it open (y/n):")
        shown.type("\x04")
        assert await shown.ended() == 3
    assert approval_of(stubs, turn).state == approval_pb2.APPROVAL_STATE_PENDING


async def test_the_inbox_is_watched(turnkeeper: CommandLine, stubs: Any) -> None:
    for waiting in stubs.approvals.ListApprovals(
        approval_pb2.ListApprovalsRequest(states=[approval_pb2.APPROVAL_STATE_PENDING])
    ).approvals:
        stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=waiting.session_id))
    assert (await turnkeeper("approvals")).output == "Nothing waits for a decision.\n"
    async with turnkeeper.on_terminal("approvals", "--watch") as shown:
        await shown.until("Watching what waits for a decision.")
        turn = await send(stubs, "asker", "act watched")
        end = turn.pending[0].approval_id[-6:]
        await shown.until(f"turnkeeper approve {end} --address {turnkeeper.address}")
        await shown.until('{"label":"watched"}')
        assert "asker  act waits for you → " in shown.text
        listed = await turnkeeper("approvals", "--json")
        request = approval_pb2.ListApprovalsRequest(states=[approval_pb2.APPROVAL_STATE_PENDING], page_size=100)
        assert len(listed.json["approvals"]) == len(stubs.approvals.ListApprovals(request).approvals) == 1
        await turnkeeper("approve", end, "--yes")
        await shown.until("asker  act approved by default")
        shown.type(CTRL_C)
        assert await shown.ended() == 130
    assert "approved by default" in (await turnkeeper("approvals", "--all")).output


async def test_a_call_whose_outcome_is_unknown_is_decided_by_its_own_words(turnkeeper: CommandLine, stubs: Any) -> None:
    async def lost(label: str) -> str:
        session = await asyncio.to_thread(create, stubs, "impatient")
        turn = await send_in(stubs, session, f"lose {label}")
        return str(turn.pending[0].approval_id)

    first = await lost("one")
    refused = await turnkeeper("approve", first, "--yes", status=2)
    assert "is unknown: pass --outcome retry, done or give-up" in refused.errors
    assert "It ran, and it is not known whether it took effect." in refused.output
    done = await turnkeeper("approve", first, "--yes", "--outcome", "done", "--result", '"at noon"', "--json")
    assert done.json["approval"]["decision"] == "APPROVAL_DECISION_MARK_DONE"
    second = await lost("two")
    async with turnkeeper.on_terminal("approve", second, size=LARGE) as shown:
        await shown.until("(r/d/g):")
        shown.type("d not JSON\n")
        await shown.until("the result: this is not JSON")
        shown.type("g cannot be found out\n")
        await shown.until("hold_irreversible: rejected")
        assert await shown.ended() == 0
    approval = stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=second)).approval
    assert approval.reason == "cannot be found out"


async def test_no_colour_means_no_escape_code_on_a_terminal(turnkeeper: CommandLine) -> None:
    async with turnkeeper.on_terminal("agents", variables={"NO_COLOR": "1"}) as shown:
        assert await shown.ended() == 0
    assert "talker" in shown.text
    assert b"\x1b" not in shown.raw


async def test_a_shell_completes_commands_and_flags(turnkeeper: CommandLine) -> None:
    async def completed(words: str) -> set[str]:
        variables = {"_TURNKEEPER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "turnkeeper"), env=variables, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return set(output.decode().split())

    assert {"sessions", "show", "serve", "approve"} <= await completed("turnkeeper ")
    assert await completed("turnkeeper appro") == {"approve", "approvals"}
