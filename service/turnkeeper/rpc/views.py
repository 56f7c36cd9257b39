"""Domain values as the messages that callers see."""

import asyncio
from dataclasses import replace
from typing import Final

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.policy import PolicyRule, usual_ruling
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import ToolSpec
from turnkeeper.domain.turn import Turn
from turnkeeper.domain.votes import missing
from turnkeeper.errors import SessionError
from turnkeeper.errors_by_code import error_of
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, session_pb2
from turnkeeper.rpc import codec
from turnkeeper.rpc.shown_text import mixed_script_words
from turnkeeper.rpc.status import detail_of
from turnkeeper.store.changeset import Head
from turnkeeper.visible_text import shown_json

_GREATEST: Final = 2**31 - 1
"""The greatest value of an int32."""


def session_view(session: Session, head: Head) -> session_pb2.Session:
    """Returns the session with what its head knows: the last event, the active turn, the queue's length."""
    view = codec.fill(session_pb2.Session(), session, rename={"id": "session_id"})
    if session.metadata_json:
        codec.fill_struct(view.metadata, session.metadata_json)
    view.last_sequence = head.last_seq
    view.active_turn_id = head.active_turn
    view.queued_turns = len(head.queue)
    return view


def turn_view(turn: Turn) -> chat_pb2.Turn:
    """Returns the turn, with its error as the RPC's status would carry it."""
    view = codec.fill(chat_pb2.Turn(), turn, rename={"id": "turn_id"})
    if turn.error is not None:
        view.error.CopyFrom(detail_of(_error(turn.error, turn).to_status()))
    return view


def _error(detail: ErrorDetail, turn: Turn) -> SessionError:
    return error_of(detail, session_id=turn.session_id, turn_id=turn.id)


def approval_view(approval: Approval) -> approval_pb2.Approval:
    """Returns the approval; without an expiry while its session is suspended."""
    view = codec.fill(
        approval_pb2.Approval(), replace(approval, votes=approval.counted_votes), rename={"id": "approval_id"}
    )
    view.needed = missing(approval)
    if approval.time_left is not None:
        view.ClearField("expire_time")  # the time that is left does not run while the session is suspended
    view.ttl.FromTimedelta(approval.ttl + approval.extended)
    view.longest_ttl.FromTimedelta(approval.longest_ttl)
    return view


async def for_approver(approval: Approval) -> approval_pb2.Approval:
    """Returns the approval with what is invisible in its texts as escapes, and with its words of mixed scripts.

    Lets the event loop run in between: a long text takes some ten milliseconds.
    """
    view = approval_view(approval)
    view.mixed_script_words.extend(await _show(view, "arguments_json"))
    view.late_result_mixed_script_words.extend(await _show(view, "late_result_json"))
    return view


async def encoded_for_watchers(approval: Approval) -> bytes:
    """Returns the bytes of `for_approver`."""
    return (await for_approver(approval)).SerializeToString()


async def _show(view: approval_pb2.Approval, field: str) -> list[str]:
    """Makes what is invisible in this field visible. Returns the field's words of mixed scripts."""
    text: str = getattr(view, field)
    if text.isascii():
        return []
    setattr(view, field, shown_json(text))
    await asyncio.sleep(0)
    words = mixed_script_words(text)
    await asyncio.sleep(0)
    return words


def agent_view(agent: Agent) -> agent_pb2.Agent:
    """Returns one version of an agent. A limit that the message cannot hold is shown as the greatest that it can."""
    limits = replace(
        agent.limits,
        max_iterations=min(agent.limits.max_iterations, _GREATEST),
        max_output_tokens=min(agent.limits.max_output_tokens, _GREATEST),
        max_attempts=min(agent.limits.max_attempts, _GREATEST),
        parallel_tools=min(agent.limits.parallel_tools, _GREATEST),
    )
    view = codec.fill(agent_pb2.Agent(), replace(agent, limits=limits))
    view.version = agent.version
    return view


def tool_view(spec: ToolSpec, rules: tuple[PolicyRule, ...]) -> agent_pb2.AgentTool:
    """Returns a tool as an agent has it, with what the rules decide about a call."""
    view = codec.fill(agent_pb2.AgentTool(), spec)
    view.conditional = any(rule.when and rule.covers(spec) and not rule.shadow for rule in rules)
    return codec.fill(view, usual_ruling(rules, spec))
