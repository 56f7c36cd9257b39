"""What a person sees of a tool call before a decision: all of what will run, who asks, and what is new about it."""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from turnkeeper.terminal import json_lines
from turnkeeper.terminal.console import Output, Part
from turnkeeper.terminal.names import ago, left, short, word
from turnkeeper.terminal.story import text_of
from turnkeeper_client import Client
from turnkeeper_client.calls import call
from turnkeeper_client.errors import NotFound, PermissionDenied
from turnkeeper_client.pb.v1 import agent_pb2, approval_pb2, event_pb2
from turnkeeper_client.pb.v1.approval_pb2 import Approval

_LONGEST_MESSAGE: Final = 2_000
"""Characters of the caller's message that are shown."""
_WARNING: Final = "bold red"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCall:
    """A call that waits for a decision, and what stands beside it on the screen."""

    approval: Approval
    description: str
    """Of the tool; empty if this replica does not know it."""
    message: str | None
    """The caller's last message; None if the approver may not see it."""
    earlier: Approval | None
    """The last approved call of this tool, in any session; None for the first."""


async def read_call(client: Client, approval: Approval) -> ShownCall:
    """Returns the call with what the service knows about it."""
    return ShownCall(
        approval=approval,
        description=await _description(client, approval),
        message=await _message(client, approval),
        earlier=await _earlier(client, approval),
    )


def show_call(output: Output, shown: ShownCall) -> None:
    """Prints the call. Its arguments are whole, token by token as they will run."""
    approval = shown.approval
    tool_class = word(event_pb2.ToolClass, approval.tool_class)
    output.show((approval.tool, "bold yellow"), (f"  {tool_class}", "dim"), f"  {shown.description}")
    for label, parts in _rows(shown):
        output.show_beside((f"{label:>9}", "dim"), *parts)
    for warning in _warnings(approval):
        output.show((warning, _WARNING))


def _rows(shown: ShownCall) -> Iterator[tuple[str, list[Part]]]:
    approval = shown.approval
    session = f"session {short(approval.session_id)}, {ago(approval.create_time)} ago"
    yield "asked by", [f"{approval.requester}, with the agent {approval.agent}, {session}"]
    if shown.message is None:
        yield "message", [("you may not see it", "dim")]
    else:
        cut = "…" if len(shown.message) > _LONGEST_MESSAGE else ""
        yield "message", [shown.message[:_LONGEST_MESSAGE] + cut]
    yield "arguments", [json_lines.in_lines(approval.arguments_json)]
    if shown.earlier is not None:
        yield "changes", list(_difference(shown.earlier, approval))
    if approval.late_result_json:
        yield "it gave", [json_lines.in_lines(approval.late_result_json)]
    if approval.approvers.k > 1 or approval.votes:
        yield "votes", [votes_of(approval)]
    if approval.HasField("expire_time"):
        yield "decide in", [left(approval.expire_time)]
    yield "hash", [(approval.arguments_hash, "dim")]


def votes_of(approval: Approval) -> str:
    """Returns how many votes there are, of whom, and what is still needed: `1 of 2 votes: bob approve; needs …`."""
    running = (event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_RETRY)
    count = sum(vote.decision in running for vote in approval.votes)
    voters = ", ".join(f"{_voter(vote)} {word(event_pb2.ApprovalDecision, vote.decision)}" for vote in approval.votes)
    text = f"{count} of {max(approval.approvers.k, 1)} votes{f': {voters}' if voters else ''}"
    if not approval.needed:
        return text
    groups, principals = sorted(approval.approvers.groups), sorted(approval.approvers.principals)
    who = " or ".join([*([f"members of {', '.join(groups)}"] if groups else []), *principals]) or "the approvers"
    others = ", not who caused the call" if approval.approvers.exclude_requester else ""
    return f"{text}; needs {approval.needed} more of {who}{others}"


def _voter(vote: approval_pb2.Vote) -> str:
    return vote.person if vote.authority in ("", vote.person) else f"{vote.person} for {vote.authority}"


def _difference(earlier: Approval, approval: Approval) -> Iterator[Part]:
    """Yields what is other than in the last approved call of the tool."""
    by = f"the call that {earlier.decided_by or 'a person'} approved {ago(earlier.decide_time)} ago"
    if earlier.arguments_json == approval.arguments_json:
        yield f"none since {by}"
        return
    yield f"since {by}:"
    before, now = (json_lines.in_lines(one.arguments_json).splitlines() for one in (earlier, approval))
    for line in difflib.unified_diff(before, now, n=1, lineterm=""):
        if line.startswith(("---", "+++", "@@")):
            continue
        yield (f"\n{line}", {"-": "red", "+": "green"}.get(line[0], "dim"))


def _warnings(approval: Approval) -> Iterator[str]:
    if approval.kind == event_pb2.APPROVAL_KIND_OUTCOME:
        yield "It ran, and it is not known whether it took effect. Find that out before you decide."
    for name, count in json_lines.hidden_characters(approval.arguments_json + approval.late_result_json).items():
        yield f"Hidden character in it: {name}, {count} times."
    mixed = [*approval.mixed_script_words, *approval.late_result_mixed_script_words]
    if mixed:
        yield f"Words that mix alphabets, and may look like others: {', '.join(mixed)}."
    if unknown := len(approval.unknown_tool_call_ids):
        yield f"{unknown} earlier calls of this tool have an unknown outcome: what this one does may be done already."


async def _description(client: Client, approval: Approval) -> str:
    with suppress(NotFound, PermissionDenied):
        response = await call(client.stubs.agents.GetAgent, agent_pb2.GetAgentRequest(name=approval.agent))
        return next((tool.description for tool in response.tools if tool.name == approval.tool), "")
    return ""


async def _message(client: Client, approval: Approval) -> str | None:
    with suppress(NotFound, PermissionDenied):
        events = client.session(approval.session_id).events(types=["message_received"], turn_id=approval.turn_id)
        async for event in events:
            return text_of(event.message_received.content)
        return ""
    return None


async def _earlier(client: Client, approval: Approval) -> Approval | None:
    request = approval_pb2.ListApprovalsRequest(
        states=[approval_pb2.APPROVAL_STATE_APPROVED],
        kind=event_pb2.APPROVAL_KIND_TOOL_CALL,
        tool=approval.tool,
        order_by="create_time desc",
        page_size=1,
    )
    with suppress(PermissionDenied):
        response = await call(client.stubs.approvals.ListApprovals, request)
        return next(iter(response.approvals), None)
    return None
