"""Asks a person about tool calls on the terminal, one after the other, and sends what the person decides."""

import asyncio
import contextlib
import json
import os
import shlex
import tempfile
from asyncio import create_subprocess_exec
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from turnkeeper.terminal import json_lines
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.names import word
from turnkeeper.terminal.question import ask_one_of, forget_typed
from turnkeeper.terminal.shown_call import read_call, show_call, votes_of
from turnkeeper_client import Client
from turnkeeper_client.calls import call
from turnkeeper_client.errors import SessionError, TransportError, Unavailable
from turnkeeper_client.pb.v1 import event_pb2
from turnkeeper_client.pb.v1.approval_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_PENDING,
    Approval,
    ApprovalState,
    DecideApprovalRequest,
    DecideApprovalResponse,
)
from turnkeeper_client.requests import duration

APPROVE: Final = event_pb2.APPROVAL_DECISION_APPROVE
REJECT: Final = event_pb2.APPROVAL_DECISION_REJECT
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at an approval while its question is shown: others may decide it."""
_CALL: Final = "Run it? y runs it, n WHY rejects it, e edits it (y/n/e):"
_OUTCOME: Final = "What became of it? r starts it again, d RESULT: it was done, g WHY gives up (r/d/g):"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembering:
    """What later calls of the session a decision approves, too. Without a scope: none."""

    scope: event_pb2.RememberScope.ValueType = event_pb2.REMEMBER_SCOPE_UNSPECIFIED
    time: timedelta = timedelta()
    uses: int = 0


NOT_REMEMBERED: Final = Remembering()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided about one approval."""

    verb: event_pb2.ApprovalDecision.ValueType
    reason: str = ""
    result_json: str = ""
    edited_arguments_json: str = ""
    remembering: Remembering = NOT_REMEMBERED
    """With APPROVE of the arguments as they are."""


class AlreadyDecided(CommandFailed):
    """An approval does not wait for a decision any more."""


async def ask_about(
    output: Output, client: Client, approvals: Sequence[Approval], *, remembering: Remembering = NOT_REMEMBERED
) -> ExitCode:
    """Shows each call and asks about it, one after the other. A refusal of the service does not end that.

    What is approved as it is shown is remembered as `remembering` has it.

    The decision names the hash of what was on the screen. Raises CommandFailed at the end of the input.
    """
    status = ExitCode.OK
    for number, approval in enumerate(approvals, 1):
        output.show((f"\n{number} of {len(approvals)}" if len(approvals) > 1 else "", "bold"))
        try:
            await _ask_about_one(output, client, approval.approval_id, remembering)
        except (SessionError, AlreadyDecided) as error:
            output.show((str(error), "red"))
            status = ExitCode.REFUSED
    return status


async def send(
    client: Client, approval: Approval, decision: Decision, *, shown_hash: str = ""
) -> DecideApprovalResponse:
    """Sends a decision about what `approval` shows, or about what has the hash given."""
    request = DecideApprovalRequest(
        approval_id=approval.approval_id,
        decision=decision.verb,
        arguments_hash=shown_hash or approval.arguments_hash,
        reason=decision.reason,
        result_json=decision.result_json,
        edited_arguments_json=decision.edited_arguments_json,
        remember=decision.remembering.scope,
        remember_for=duration(decision.remembering.time if decision.remembering.scope else None),
        remember_uses=decision.remembering.uses,
    )
    return await call(client.stubs.approvals.DecideApproval, request)


def show_decided(output: Output, approval: Approval) -> None:
    """Prints what became of an approval."""
    state = word(ApprovalState, approval.state)
    if approval.state == APPROVAL_STATE_PENDING:
        output.show(f"{approval.tool} waits: {votes_of(approval)}")
    else:
        output.show((f"{approval.tool}: {state}", "green" if approval.state == APPROVAL_STATE_APPROVED else "red"))


def check_open(approval: Approval) -> None:
    """Raises AlreadyDecided unless the approval waits for a decision."""
    if approval.state != APPROVAL_STATE_PENDING:
        by = f" by {approval.decided_by}" if approval.decided_by else ""
        state = word(ApprovalState, approval.state)
        raise AlreadyDecided(f"approval {approval.approval_id} is {state}{by} already", ExitCode.REFUSED)


async def edited(approval: Approval) -> str | None:
    """Opens the arguments in the person's editor. Returns the new ones, or None if they are as they were.

    VISUAL or EDITOR names the editor, else it is vi. Raises CommandFailed if it fails, and for text that is not JSON.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    before = json_lines.in_lines(approval.arguments_json)
    with tempfile.TemporaryDirectory(prefix="turnkeeper-") as folder:
        file = Path(folder) / "arguments.json"
        file.write_text(f"{before}\n", encoding="utf-8")
        try:
            editor = await create_subprocess_exec(*command, str(file))
        except OSError as error:
            raise CommandFailed(f"the editor {command[0]} cannot be started: {error.strerror}; set EDITOR") from None
        if await editor.wait():
            raise CommandFailed(f"the editor {command[0]} ended with status {editor.returncode}; nothing was decided")
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    check_json(text, "the arguments")
    return None if text == before else text


def check_json(text: str, what: str) -> None:
    """Raises CommandFailed if a text of the person is not JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{what}: this is not JSON: {error}", ExitCode.USAGE) from None


async def _ask_about_one(output: Output, client: Client, approval_id: str, remembering: Remembering) -> None:
    approval = await client.approvals.get(approval_id)  # as it is now: others decide, too
    check_open(approval)
    show_call(output, await read_call(client, approval))
    question = _ask_outcome if _is_outcome(approval) else _ask_call
    decision = None
    while decision is None:
        decision = await question(output, client, approval)
    if decision.verb == APPROVE and not decision.edited_arguments_json:
        decision = replace(decision, remembering=remembering)
    show_decided(output, (await _sent(output, client, approval, decision)).approval)


async def _sent(output: Output, client: Client, approval: Approval, decision: Decision) -> DecideApprovalResponse:
    """Sends a decision until the service answers: the same one again changes nothing. Ctrl-C ends it."""
    is_shown = False
    while True:
        try:
            return await send(client, approval, decision)
        except (TransportError, Unavailable):
            if not is_shown:
                output.show(("no answer from the service; trying again until Ctrl-C", "yellow"))
            is_shown = True
        await asyncio.sleep(LOOK_EVERY)


async def _ask_call(output: Output, client: Client, approval: Approval) -> Decision | None:
    """Returns the decision; None if the question is to be shown again."""
    word_, rest = await _ask_while_open(output, client, approval, _CALL, ("yes", "no", "edit"))
    if word_ == "yes":
        return Decision(verb=APPROVE, reason=rest)
    if word_ == "no":
        return Decision(verb=REJECT, reason=rest)
    try:
        return await ask_edited(output, approval, await edited(approval))
    except CommandFailed as error:
        output.show((str(error), "red"))
        return None


async def ask_edited(output: Output, approval: Approval, arguments: str | None, *, reason: str = "") -> Decision | None:
    """Shows edited arguments, and asks whether the call shall run with them. Returns None if not."""
    if arguments is None:
        output.show("The arguments are as they were.")
        return None
    output.show_beside((f"{approval.tool}", "bold yellow"), arguments)
    chosen, rest = await ask_one_of(output, "Run it with these? (y/n):", ("yes", "no"))
    if chosen == "no":
        return None
    return Decision(verb=APPROVE, reason=rest or reason, edited_arguments_json=arguments)


async def _ask_outcome(output: Output, client: Client, approval: Approval) -> Decision | None:
    chosen, rest = await _ask_while_open(output, client, approval, _OUTCOME, ("retry", "done", "give"))
    if chosen == "retry":
        return Decision(verb=event_pb2.APPROVAL_DECISION_RETRY, reason=rest)
    if chosen == "give":
        return Decision(verb=event_pb2.APPROVAL_DECISION_GIVE_UP, reason=rest)
    try:
        if rest:
            check_json(rest, "the result")
    except CommandFailed as error:
        output.show((str(error), "red"))
        return None
    return Decision(verb=event_pb2.APPROVAL_DECISION_MARK_DONE, result_json=rest)


async def _ask_while_open(
    output: Output, client: Client, approval: Approval, question: str, answers: Collection[str]
) -> tuple[str, str]:
    """Asks as `ask_one_of`. Raises AlreadyDecided as soon as the approval is decided elsewhere, or has expired."""
    asking = asyncio.create_task(ask_one_of(output, question, answers))
    watching = asyncio.create_task(_decided(client, approval.approval_id))
    try:
        await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return await asking
    finally:
        for task in (asking, watching):
            task.cancel()
        await asyncio.gather(asking, watching, return_exceptions=True)
    output.show()
    forget_typed()
    check_open(await watching)
    raise AssertionError("an open approval was taken for a decided one")


async def _decided(client: Client, approval_id: str) -> Approval:
    """Returns the approval once it does not wait any more. Goes on while the service does not answer."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        with contextlib.suppress(TransportError, Unavailable):
            approval = await client.approvals.get(approval_id)
            if approval.state != APPROVAL_STATE_PENDING:
                return approval


def _is_outcome(approval: Approval) -> bool:
    return approval.kind == event_pb2.APPROVAL_KIND_OUTCOME
