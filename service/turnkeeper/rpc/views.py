"""Values as the messages that callers see."""

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.session import Session
from turnkeeper.domain.turn import Turn
from turnkeeper.errors import SessionError, error_of
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, session_pb2
from turnkeeper.rpc import codec
from turnkeeper.rpc.status import detail_of
from turnkeeper.store.changeset import Head


def session_view(session: Session, head: Head) -> session_pb2.Session:
    made = codec.fill(session_pb2.Session(), session, rename={"id": "session_id"})
    if session.metadata_json:
        codec.fill_struct(made.metadata, session.metadata_json)
    made.last_sequence = head.last_seq
    made.active_turn_id = head.active_turn
    made.queued_turns = len(head.queue)
    return made


def turn_view(turn: Turn) -> chat_pb2.Turn:
    made = codec.fill(chat_pb2.Turn(), turn, rename={"id": "turn_id"})
    if turn.error is not None:
        made.error.CopyFrom(detail_of(_error(turn.error, turn).to_status()))
    return made


def _error(detail: ErrorDetail, turn: Turn) -> SessionError:
    return error_of(detail, session_id=turn.session_id, turn_id=turn.id)


def approval_view(approval: Approval) -> approval_pb2.Approval:
    made = codec.fill(approval_pb2.Approval(), approval, rename={"id": "approval_id"})
    if approval.time_left is not None:
        made.ClearField("expire_time")  # its clock stands still
    return made


def agent_view(agent: Agent) -> agent_pb2.Agent:
    made = codec.fill(agent_pb2.Agent(), agent)
    made.version = agent.version
    return made
