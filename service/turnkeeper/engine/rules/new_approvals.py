"""Makes the approval that asks about a tool call."""

from datetime import datetime

from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState, hash_with_late_result
from turnkeeper.domain.tool import Call, CallState
from turnkeeper.domain.turn import Turn


def new_approval(call: Call, turn: Turn, *, approval_id: str, at: datetime, now: datetime) -> Approval:
    """Returns a PENDING approval of the call's round: of an UNKNOWN call it asks for the outcome.

    `at` is the replica's time, for people; `now` is the database's, by which it expires.
    """
    is_lost = call.state is CallState.UNKNOWN
    late_result_json = call.late_result_json if is_lost and call.late_attempt == call.attempt else ""
    shown = call.arguments_hash
    return Approval(
        id=approval_id,
        tenant=call.tenant,
        session_id=call.session_id,
        turn_id=call.turn_id,
        tool_call_id=call.id,
        kind=ApprovalKind.OUTCOME if is_lost else ApprovalKind.TOOL_CALL,
        state=ApprovalState.PENDING,
        round=call.round,
        tool=call.tool,
        tool_class=call.tool_class,
        arguments_json=call.arguments_json,
        arguments_hash=hash_with_late_result(shown, late_result_json) if late_result_json else shown,
        requester=turn.principal,
        agent=turn.agent,
        create_time=at,
        expire_time=now + call.ttl,
        unknown_tool_call_ids=call.shown,
        approvers=call.approvers,
        rule=call.rule,
        rule_text=call.rule_text,
        note=call.note,
        source=call.source,
        schema_hash=call.schema_hash,
        description_hash=call.description_hash,
        model_words=call.model_words,
        untrusted=call.untrusted,
        late_result_json=late_result_json,
        causers=turn.caused_by,
        ttl=call.ttl,
    ).with_warning()
