"""Finds what an id means that a person typed: the whole id, or its last characters if only one id ends so."""

from collections.abc import AsyncIterator
from typing import TypeVar

from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.names import SHORT
from turnkeeper_client import Client
from turnkeeper_client.errors import InvalidArgument, NotFound
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING, Approval
from turnkeeper_client.pb.v1.session_pb2 import Session

Item = TypeVar("Item", Approval, Session)
_SHOWN = 5
"""Ids that a message names, at most."""


async def find_session(client: Client, text: str) -> Session:
    """Returns the session with this id, or the only one whose id ends so. Raises CommandFailed."""
    try:
        return await client.sessions.get(text)
    except (NotFound, InvalidArgument):
        candidates = [session async for session in _ending(client.sessions.list(), "session_id", text)]
    return _only(candidates, "session_id", text, kind="session", where="`turnkeeper sessions` lists them")


async def find_approval(client: Client, text: str) -> Approval:
    """Returns the approval with this id, or the only one whose id ends so: of those that wait, if one of them does."""
    try:
        return await client.approvals.get(text)
    except (NotFound, InvalidArgument):
        pending = client.approvals.list(states=[APPROVAL_STATE_PENDING])
        candidates = [approval async for approval in _ending(pending, "approval_id", text)]
    if not candidates:
        candidates = [approval async for approval in _ending(client.approvals.list(), "approval_id", text)]
    return _only(candidates, "approval_id", text, kind="approval", where="`turnkeeper approvals` lists those that wait")


async def _ending(items: AsyncIterator[Item], field: str, text: str) -> AsyncIterator[Item]:
    """Yields the items whose id ends with the text, which has enough characters for that."""
    if len(text) < SHORT:
        return
    async for item in items:
        if getattr(item, field).endswith(text):
            yield item


def _only(candidates: list[Item], field: str, text: str, *, kind: str, where: str) -> Item:
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        least = f" An end of an id has at least {SHORT} characters." if len(text) < SHORT else ""
        raise CommandFailed(f"there is no {kind} {text!r} that you may see.{least} {where}", ExitCode.REFUSED)
    ids = ", ".join(getattr(candidate, field) for candidate in candidates[:_SHOWN])
    raise CommandFailed(
        f"{len(candidates)} ids of {kind}s end with {text!r}: {ids}. Write more of the one you mean", ExitCode.USAGE
    )
