"""The commands `turnkeeper approvals delegate`, `delegations` and `revoke`: authority to decide, lent for a while."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from turnkeeper import durations
from turnkeeper.terminal import pages
from turnkeeper.terminal.approvals import approvals_app
from turnkeeper.terminal.command import Terminal, examples_text, runnable
from turnkeeper.terminal.console import Part
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.names import day, left
from turnkeeper_client.pb.v1 import approval_pb2

_PRINCIPAL = Annotated[str, typer.Argument(metavar="PRINCIPAL", help="the approver who gets your authority")]
_MOST: Final = 10_000


async def delegate(
    terminal: Terminal,
    principal: _PRINCIPAL,
    *,
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="how long: 8h or 7d, at most 30d")] = "7d",
) -> None:
    """Lend your authority to decide to another approver. Again sets the new time."""
    try:
        until = datetime.now(UTC) + durations.parse(for_)
    except ValueError as error:
        raise CommandFailed(f"--for: {error}", ExitCode.USAGE) from None
    async with terminal.client() as client:
        delegation = await client.approvals.delegate(principal, until=until)
    if terminal.json:
        terminal.output.show_json(delegation)
    else:
        terminal.output.show(f"{delegation.delegate} may decide in your place until {day(delegation.until)}")


async def list_delegations(
    terminal: Terminal,
    *,
    of: Annotated[str, typer.Option(metavar="PRINCIPAL", help="only those of this principal", show_default=False)] = "",
) -> None:
    """List who may decide in whose place; an operator or auditor reads those of the tenant."""
    async with terminal.client() as client:
        request = approval_pb2.ListApprovalDelegationsRequest(principal=of)
        response = await pages.read(client.stubs.approvals.ListApprovalDelegations, request, most=_MOST)
    if terminal.json:
        terminal.output.show_json(response)
    elif not response.delegations:
        terminal.output.show("No authority is lent.")
    else:
        rows = [_row(delegation) for delegation in response.delegations]
        terminal.output.show_table(["DELEGATE", "IN THE PLACE OF", "UNTIL", "LEFT"], rows)


async def revoke(
    terminal: Terminal,
    principal: _PRINCIPAL,
    *,
    of: Annotated[str, typer.Option(metavar="PERSON", help="an operator: whose delegation", show_default=False)] = "",
) -> ExitCode:
    """Take your authority back. Votes that were cast by it stay."""
    async with terminal.client() as client:
        revoked = await client.approvals.revoke_delegation(principal, person=of)
    if not terminal.json:
        terminal.output.show(f"{principal} {'no longer decides' if revoked else 'did not decide'} in that place")
    return ExitCode.OK if revoked else ExitCode.FAILED


def _row(delegation: approval_pb2.ApprovalDelegation) -> list[Part]:
    return [(delegation.delegate, "bold"), delegation.person, day(delegation.until), left(delegation.until)]


def _add(name: str, function: object, examples: Iterable[str]) -> None:
    approvals_app.command(name, epilog=examples_text(tuple(examples)))(runnable(function, json=True))  # type: ignore[arg-type]


_add("delegate", delegate, ("approvals delegate bob", "approvals delegate bob --for 8h"))
_add("delegations", list_delegations, ("approvals delegations", "approvals delegations --of bob"))
_add("revoke", revoke, ("approvals revoke bob",))
