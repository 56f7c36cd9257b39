"""The command `turnkeeper approvals`: what waits for a person, and what happens to it."""

from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Final

import typer

from turnkeeper.terminal import pages
from turnkeeper.terminal.app import DECIDE, app
from turnkeeper.terminal.command import Terminal, examples_text, runnable
from turnkeeper.terminal.console import Output, Part
from turnkeeper.terminal.names import ago, in_one_line, left, short, shortened, word
from turnkeeper.terminal.show import PATIENT
from turnkeeper_client.pb.v1 import approval_pb2
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING, Approval

_MOST: Final = 1_000


approvals_app: Final = typer.Typer(
    help="List the tool calls that wait for a person, or lend your authority to decide.",
    epilog=examples_text(
        ("approvals", "approvals --watch", "approvals --all --json", "approvals delegate bob --for 7d")
    ),
    invoke_without_command=True,
)
app.add_typer(approvals_app, name="approvals", rich_help_panel=DECIDE)


async def list_approvals(
    terminal: Terminal,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="go on with what comes and goes, until Ctrl-C")] = False,
    every: Annotated[bool, typer.Option("--all", help="also those that are decided, the newest first")] = False,
    tool: Annotated[str, typer.Option(metavar="NAME", help="only those of this tool", show_default=False)] = "",
) -> None:
    """List the tool calls that wait for a person, or lend your authority to decide."""
    if watch:
        await _watch(terminal, tool)
        return
    async with terminal.client() as client:
        request = approval_pb2.ListApprovalsRequest(tool=tool)
        if every:
            request.order_by = "create_time desc"
        else:
            request.states.append(APPROVAL_STATE_PENDING)
        response = await pages.read(client.stubs.approvals.ListApprovals, request, most=_MOST)
    if terminal.json:
        terminal.output.show_json(response)
    else:
        _show_table(terminal.output, list(response.approvals))


approvals_app.callback(help="List the tool calls that wait for a person, or lend your authority to decide.")(
    runnable(list_approvals, json=True, is_group=True)
)


async def _watch(terminal: Terminal, tool: str) -> None:
    """Prints a line for each approval that comes, and for each that goes. Goes on when the service comes back."""
    if not terminal.json:
        terminal.output.show(("Watching what waits for a decision. Ctrl-C ends this.", "dim"))
    shown: set[str] = set()
    async with terminal.connection.open(resume=PATIENT) as client:
        inbox = client.approvals.inbox(tool=tool)
        async with aclosing(aiter(inbox)) as approvals:
            async for approval in approvals:
                is_waiting = approval.approval_id in inbox.waiting
                if not is_waiting or approval.approval_id not in shown:
                    _show_change(terminal, approval)
                (shown.add if is_waiting else shown.discard)(approval.approval_id)


def _show_change(terminal: Terminal, approval: Approval) -> None:
    if terminal.json:
        terminal.output.show_json(approval, one_line=True)
        return
    is_new = approval.state == APPROVAL_STATE_PENDING
    label = (datetime.now().astimezone().strftime("%H:%M:%S"), "dim")
    name: Part = (f"{approval.agent}  ", "bold")
    if is_new:
        advice = (f" → {terminal.shell(f'approve {short(approval.approval_id)}')}", "yellow")
        arguments = (f"\n{in_one_line(approval.arguments_json)}", "dim")
        terminal.output.show_beside(label, name, f"{approval.tool} waits for you", advice, arguments)
    else:
        terminal.output.show_beside(label, name, f"{approval.tool} {_end_of(approval)}")


def _show_table(output: Output, approvals: list[Approval]) -> None:
    if not approvals:
        output.show("Nothing waits for a decision.")
        return
    ids = shortened(approval.approval_id for approval in approvals)
    rows: list[list[Part]] = [
        [
            (ids[approval.approval_id], "bold"),
            approval.agent,
            approval.requester,
            f"{ago(approval.create_time)} ago",
            _end_of(approval),
            approval.tool,
            in_one_line(approval.arguments_json),
        ]
        for approval in approvals
    ]
    output.show_table(["APPROVAL", "AGENT", "ASKED BY", "SINCE", "STATE", "TOOL", "ARGUMENTS"], rows)


def _end_of(approval: Approval) -> str:
    """Returns how long it can be decided, or what became of it."""
    if approval.state != APPROVAL_STATE_PENDING:
        state = word(approval_pb2.ApprovalState, approval.state)
        return f"{state} by {approval.decided_by}" if approval.decided_by else state
    return f"{left(approval.expire_time)} left" if approval.HasField("expire_time") else "waits"
