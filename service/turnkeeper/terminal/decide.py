"""The commands `turnkeeper approve`, `reject` and `edit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import typer

from turnkeeper import durations
from turnkeeper.terminal.app import DECIDE
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.deciding import (
    APPROVE,
    REJECT,
    Decision,
    Remembering,
    ask_about,
    ask_edited,
    check_json,
    check_open,
    edited,
    show_decided,
)
from turnkeeper.terminal.deciding import send as send_answer
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.lookup import find_approval
from turnkeeper.terminal.question import ask_one_of, can_ask
from turnkeeper.terminal.shown_call import read_call, show_call
from turnkeeper_client import Client
from turnkeeper_client.pb.v1 import event_pb2
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING, Approval

_HELP: Final = "id of an approval, or its last 6 characters or more"
_APPROVALS = Annotated[list[str] | None, typer.Argument(metavar="[APPROVAL]", help=_HELP, show_default=False)]
_APPROVAL = Annotated[str, typer.Argument(metavar="APPROVAL", help=_HELP)]
_YES = Annotated[bool, typer.Option("--yes", help="do not ask: decide on what is there now, which is printed")]
_HASH = Annotated[
    str, typer.Option("--hash", metavar="HASH", help="do not ask: decide if the hash is still this", show_default=False)
]
_REASON = Annotated[str, typer.Option(metavar="TEXT", help="why; the model reads it if it rejects", show_default=False)]


class OutcomeChoice(StrEnum):
    """What is decided about a call whose outcome is unknown."""

    RETRY = "retry"
    DONE = "done"
    GIVE_UP = "give-up"


class RememberChoice(StrEnum):
    """Which later calls of the session a decision approves, too."""

    TOOL = "tool"
    ARGUMENTS = "arguments"


_SCOPES: Final = {
    RememberChoice.TOOL: event_pb2.REMEMBER_SCOPE_TOOL,
    RememberChoice.ARGUMENTS: event_pb2.REMEMBER_SCOPE_ARGUMENTS,
}
_DECISIONS: Final = {
    OutcomeChoice.RETRY: event_pb2.APPROVAL_DECISION_RETRY,
    OutcomeChoice.DONE: event_pb2.APPROVAL_DECISION_MARK_DONE,
    OutcomeChoice.GIVE_UP: event_pb2.APPROVAL_DECISION_GIVE_UP,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unasked:
    """How a command decides without a question."""

    yes: bool
    hash: str

    @property
    def chosen(self) -> bool:
        return self.yes or bool(self.hash)


@command(
    "approve",
    panel=DECIDE,
    examples=(
        "approve",
        "approve k3f9q2",
        "approve k3f9q2 --remember arguments --for 1h",
        "approve k3f9q2 --hash 5f3a…",
        "approve k3f9q2 --outcome done --yes",
    ),
)
async def approve(  # noqa: PLR0913 - the options of the command
    terminal: Terminal,
    approvals: _APPROVALS = None,
    *,
    yes: _YES = False,
    hash_: _HASH = "",
    reason: _REASON = "",
    outcome: Annotated[
        OutcomeChoice | None,
        typer.Option(help="for a call whose outcome is unknown: start it again, it was done, or give up"),
    ] = None,
    result: Annotated[
        str, typer.Option(metavar="JSON", help="with --outcome done: what it gave", show_default=False)
    ] = "",
    remember: Annotated[
        RememberChoice | None,
        typer.Option(help="approve later calls of the session, too: of the tool, or with the same arguments"),
    ] = None,
    time: Annotated[str, typer.Option("--for", metavar="TIME", help="with --remember: how long, at most 24h")] = "1h",
    uses: Annotated[int, typer.Option(min=1, max=10, metavar="N", help="with --remember: how many later calls")] = 10,
) -> ExitCode:
    """Show tool calls that wait, and ask about each.

    Shows what will run, who asks, and what is other than in the last approved call of the tool. Without ids all that
    waits is shown, one after the other. A program passes --hash, or --yes.
    """
    unasked = Unasked(yes=yes, hash=hash_)
    verb = APPROVE if outcome is None else _DECISIONS[outcome]
    if result:
        check_json(result, "--result")
    remembering = _remembering(remember, time, uses)
    async with terminal.client() as client:
        if unasked.chosen:
            decision = Decision(verb=verb, reason=reason, result_json=result, remembering=remembering)
            return await _decide_unasked(terminal, client, approvals or [], decision, unasked)
        screen = _screen(terminal)
        chosen = [await find_approval(client, text) for text in approvals or []] or await _pending(client)
        if not chosen:
            screen.show("Nothing waits for a decision.")
        return await ask_about(screen, client, chosen, remembering=remembering)


@command("reject", panel=DECIDE, examples=('reject k3f9q2 --reason "Ask Ada first."',))
async def reject(
    terminal: Terminal, approval: _APPROVAL, *, yes: _YES = False, hash_: _HASH = "", reason: _REASON = ""
) -> ExitCode:
    """Reject a tool call; one whose outcome is unknown is given up."""
    unasked = Unasked(yes=yes, hash=hash_)
    async with terminal.client() as client:
        if unasked.chosen:
            return await _decide_unasked(terminal, client, [approval], Decision(verb=REJECT, reason=reason), unasked)
        screen = _screen(terminal)
        chosen = await find_approval(client, approval)
        check_open(chosen)
        show_call(screen, await read_call(client, chosen))
        word, rest = await ask_one_of(screen, "Reject it? y WHY rejects it, n leaves it open (y/n):", ("yes", "no"))
        if word == "no":
            return ExitCode.WAITS
        decision = _fitting(chosen, Decision(verb=REJECT, reason=rest or reason))
        show_decided(screen, (await send_answer(client, chosen, decision)).approval)
        return ExitCode.OK


@command("edit", panel=DECIDE, examples=("edit k3f9q2", """edit k3f9q2 --arguments '{"to":"Bob"}' --yes"""))
async def edit(
    terminal: Terminal,
    approval: _APPROVAL,
    *,
    arguments: Annotated[
        str, typer.Option(metavar="JSON", help="the new arguments; without it your EDITOR opens", show_default=False)
    ] = "",
    yes: _YES = False,
    hash_: _HASH = "",
    reason: _REASON = "",
) -> ExitCode:
    """Approve a tool call with other arguments."""
    unasked = Unasked(yes=yes, hash=hash_)
    if arguments:
        check_json(arguments, "--arguments")
    async with terminal.client() as client:
        if unasked.chosen:
            if not arguments:
                raise CommandFailed("without a question the new arguments are needed: --arguments", ExitCode.USAGE)
            decision = Decision(verb=APPROVE, reason=reason, edited_arguments_json=arguments)
            return await _decide_unasked(terminal, client, [approval], decision, unasked)
        screen = _screen(terminal)
        chosen = await find_approval(client, approval)
        check_open(chosen)
        show_call(screen, await read_call(client, chosen))
        new = arguments or await edited(chosen)
        changed = await ask_edited(screen, chosen, new, reason=reason)
        if changed is None:
            return ExitCode.WAITS
        show_decided(screen, (await send_answer(client, chosen, changed)).approval)
        return ExitCode.OK


async def _decide_unasked(
    terminal: Terminal, client: Client, ids: Sequence[str], decision: Decision, unasked: Unasked
) -> ExitCode:
    """Decides without a question. What --yes decides on is printed before."""
    if not ids or (unasked.hash and len(ids) > 1):
        which = "one id" if unasked.hash else "the ids"
        raise CommandFailed(f"without a question {which} of what is decided must be there", ExitCode.USAGE)
    screen = terminal.errors if terminal.json else terminal.output
    for text in ids:
        approval = await find_approval(client, text)
        if unasked.yes:
            show_call(screen, await read_call(client, approval))
        response = await send_answer(client, approval, _fitting(approval, decision), shown_hash=unasked.hash)
        if terminal.json:
            terminal.output.show_json(response)
        else:
            show_decided(terminal.output, response.approval)
    return ExitCode.OK


def _remembering(choice: RememberChoice | None, time: str, uses: int) -> Remembering:
    """Returns what of a decision is remembered. Raises CommandFailed for a text that is not a duration."""
    if choice is None:
        return Remembering()
    try:
        return Remembering(scope=_SCOPES[choice], time=durations.parse(time), uses=uses)
    except ValueError as error:
        raise CommandFailed(f"--for: {error}", ExitCode.USAGE) from None


def _fitting(approval: Approval, decision: Decision) -> Decision:
    """Returns the decision for the approval's kind: a lost call is not rejected but given up. Raises CommandFailed."""
    is_outcome = approval.kind == event_pb2.APPROVAL_KIND_OUTCOME
    if is_outcome and decision.verb == REJECT:
        return Decision(verb=event_pb2.APPROVAL_DECISION_GIVE_UP, reason=decision.reason)
    if is_outcome and decision.verb == APPROVE:
        raise CommandFailed(
            f"the outcome of this call of {approval.tool} is unknown: pass --outcome retry, done or give-up",
            ExitCode.USAGE,
        )
    return decision


def _screen(terminal: Terminal) -> Output:
    """Returns where questions are shown. Raises CommandFailed if a person cannot answer there."""
    screen = terminal.errors if terminal.json else terminal.output
    if not can_ask(screen):
        raise CommandFailed(
            "there is no terminal to ask on: pass --hash with the hash that was shown to you, or --yes", ExitCode.USAGE
        )
    return screen


async def _pending(client: Client) -> list[Approval]:
    return [approval async for approval in client.approvals.list(states=[APPROVAL_STATE_PENDING])]
