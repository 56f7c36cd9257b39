"""The commands `turnkeeper remembered` and `forget`: decisions that approve later calls of a session."""

from typing import Annotated

import typer

from turnkeeper.terminal.app import DECIDE
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.console import Part
from turnkeeper.terminal.lookup import find_approval, find_session
from turnkeeper.terminal.names import left, shortened, word
from turnkeeper_client.pb.v1 import approval_pb2, event_pb2


@command("remembered", panel=DECIDE, examples=("remembered k3f9q2",))
async def list_remembered(
    terminal: Terminal,
    session: Annotated[
        str, typer.Argument(metavar="SESSION", help="id of a session, or its last 6 characters or more")
    ],
) -> None:
    """List the decisions that a session remembers.

    Each of them approves later calls of the session, until its time or its uses are over.
    """
    async with terminal.client() as client:
        chosen = await find_session(client, session)
        request = approval_pb2.ListRememberedDecisionsRequest(session_id=chosen.session_id)
        response = await client.stubs.approvals.ListRememberedDecisions(request)
    if terminal.json:
        terminal.output.show_json(response)
        return
    if not response.decisions:
        terminal.output.show("The session remembers no decision.")
        return
    ids = shortened(decision.approval_id for decision in response.decisions)
    rows: list[list[Part]] = [
        [
            (ids[decision.approval_id], "bold"),
            decision.tool,
            word(event_pb2.RememberScope, decision.scope),
            ", ".join(decision.decided_by),
            f"{left(decision.expire_time)} left",
            str(decision.uses_left),
        ]
        for decision in response.decisions
    ]
    terminal.output.show_table(["APPROVAL", "TOOL", "SCOPE", "DECIDED BY", "TIME", "USES LEFT"], rows)


@command("forget", panel=DECIDE, examples=("forget k3f9q2",))
async def forget(
    terminal: Terminal,
    approval: Annotated[
        str, typer.Argument(metavar="APPROVAL", help="id of the approval whose decision is remembered, or its end")
    ],
) -> None:
    """Revoke a remembered decision: it approves no more calls.

    What it has approved before stays approved.
    """
    async with terminal.client() as client:
        chosen = await find_approval(client, approval)
        request = approval_pb2.RevokeRememberedDecisionRequest(approval_id=chosen.approval_id)
        response = await client.stubs.approvals.RevokeRememberedDecision(request)
    if terminal.json:
        terminal.output.show_json(response)
    else:
        terminal.output.show("revoked" if response.sequence else "It is not remembered (any more).")
