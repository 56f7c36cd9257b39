"""What a request must be: one table, enforced at the boundary; the reference is made from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.message import Message

from turnkeeper.errors import InvalidRequest, NotImplementedYet

ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
AGENT = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`most`: characters of a text, entries of a list or map. `later`: the field comes with a later release."""

    required: bool = False
    pattern: re.Pattern[str] | None = None
    most: int = 0
    later: bool = False
    least_value: int | None = None
    most_seconds: float | None = None


_SESSION = Rule(required=True, pattern=ID)
_TURN = Rule(required=True, pattern=ID)
_REQUEST = Rule(required=True, most=128)
_PAGE: Mapping[str, Rule] = {"page_size": Rule(least_value=0), "page_token": Rule(most=1024)}
_PART_OF_A_LOG: Mapping[str, Rule] = {
    "after": Rule(most=512),
    "after_sequence": Rule(least_value=0),
    "types": Rule(most=64),
    "turn_id": Rule(pattern=ID),
}
_LABELS = Rule(most=32)
_TITLE = Rule(most=200)
_CREATE: Mapping[str, Rule] = {
    "create_session.agent": Rule(pattern=AGENT),
    "create_session.title": _TITLE,
    "create_session.labels": _LABELS,
}
_MESSAGE: Mapping[str, Rule] = {
    "session_id": Rule(pattern=ID),
    "request_id": _REQUEST,
    "content": Rule(required=True, most=64),
    "response_schema_json": Rule(most=64 * 1024),
    "limits.max_iterations": Rule(least_value=0),
    "limits.max_output_tokens": Rule(least_value=0),
    "client_tools": Rule(most=32),
    **_CREATE,
}

RULES: Mapping[str, Mapping[str, Rule]] = {
    "CreateSessionRequest": {
        "session_id": Rule(pattern=ID),
        "request_id": Rule(most=128),
        "agent": Rule(required=True, pattern=AGENT),
        "title": _TITLE,
        "labels": _LABELS,
        "idle_ttl": Rule(later=True),
    },
    "GetSessionRequest": {"session_id": _SESSION},
    "ListSessionsRequest": {
        **_PAGE,
        "agent": Rule(most=64),
        "owner": Rule(most=512),
        "labels": _LABELS,
        "order_by": Rule(most=64),
    },
    "UpdateSessionRequest": {
        "session": Rule(required=True),
        "session.session_id": _SESSION,
        "session.title": _TITLE,
        "session.labels": _LABELS,
        "update_mask": Rule(required=True),
        "etag": Rule(most=128),
    },
    "SuspendSessionRequest": {"session_id": _SESSION},
    "ResumeSessionRequest": {"session_id": _SESSION},
    "EndSessionRequest": {"session_id": _SESSION, "reason": Rule(most=1000)},
    "DeleteSessionRequest": {"session_id": _SESSION, "etag": Rule(most=128)},
    "UndeleteSessionRequest": {"session_id": _SESSION},
    "WatchEventsRequest": {"session_id": _SESSION, **_PART_OF_A_LOG},
    "ListEventsRequest": {"session_id": _SESSION, **_PART_OF_A_LOG, "page_size": Rule(least_value=0)},
    "ListMessagesRequest": {"session_id": _SESSION, **_PAGE, "order_by": Rule(most=64)},
    "ListCheckpointsRequest": {"session_id": _SESSION, **_PAGE},
    "ForkSessionRequest": {
        "session_id": _SESSION,
        "request_id": _REQUEST,
        "new_session_id": Rule(pattern=ID),
        "checkpoint_id": Rule(most=64),
    },
    "RestoreCheckpointRequest": {
        "session_id": _SESSION,
        "checkpoint_id": Rule(most=64),
        "request_id": Rule(most=128),
    },
    "SendMessageRequest": {**_MESSAGE, "wait": Rule(most_seconds=120)},
    "StreamMessageRequest": {**_MESSAGE, "after": Rule(most=512)},
    "GetTurnRequest": {"session_id": _SESSION, "turn_id": _TURN, "wait": Rule(most_seconds=120)},
    "ListTurnsRequest": {"session_id": _SESSION, **_PAGE},
    "CancelTurnRequest": {"session_id": _SESSION, "turn_id": _TURN},
    "RetryTurnRequest": {"session_id": _SESSION, "turn_id": _TURN, "request_id": _REQUEST},
    "SubmitToolResultRequest": {
        "session_id": _SESSION,
        "tool_call_id": Rule(required=True, most=128),
        "result_json": Rule(required=True),
    },
    "GetApprovalRequest": {"approval_id": _TURN},
    "ListApprovalsRequest": {
        **_PAGE,
        "session_id": Rule(pattern=ID),
        "tool": Rule(most=64),
        "decidable_by": Rule(later=True),
    },
    "WaitApprovalRequest": {"approval_id": _TURN, "wait": Rule(most_seconds=120)},
    "DecideApprovalRequest": {
        "approval_id": _TURN,
        "decision": Rule(required=True),
        "arguments_hash": Rule(required=True, most=128),
        "reason": Rule(most=2000),
        "on_behalf_of": Rule(later=True),
    },
    "GetAgentRequest": {"name": Rule(required=True, most=64), "version": Rule(most=64)},
    "ListAgentsRequest": dict(_PAGE),
}


def check(request: Message) -> None:
    """Raises InvalidRequest that names every field at fault, or NotImplementedYet for a field of a later release."""
    problems: dict[str, str] = {}
    for path, rule in RULES.get(request.DESCRIPTOR.name, {}).items():
        found, value = _at(request, path)
        if not found:
            continue
        if rule.later and value:
            raise NotImplementedYet(
                f"The field {path} comes with a later release; leave it unset.", metadata={"field": path}
            )
        problem = _problem(rule, value)
        if problem:
            problems[path] = problem
    problems |= _unknown_values(request)
    if problems:
        refuse(problems)


def _unknown_values(request: Message) -> dict[str, str]:
    """Enum fields with a number that this version does not know."""
    found: dict[str, str] = {}
    for field, value in request.ListFields():
        if field.enum_type is None:
            continue
        known = field.enum_type.values_by_number
        unknown = [number for number in (value if field.is_repeated else (value,)) if number not in known]
        if unknown:
            found[field.name] = f"{unknown[0]} is no value of {field.enum_type.name}"
    return found


def refuse(problems: Mapping[str, str]) -> NoReturn:
    """Raises InvalidRequest with these fields."""
    said = "; ".join(f"{path} {problem}" for path, problem in problems.items())
    raise InvalidRequest(f"The request is not valid: {said}.", fields=problems)


def _at(message: Message, path: str) -> tuple[bool, object]:
    """Whether the field's parent is there, and the field's value; an unset message field is None."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    single_message = field.message_type is not None and not field.is_repeated
    if single_message and not message.HasField(name):
        return not rest, None
    value = getattr(message, name)
    return _at(value, rest) if rest else (True, value)


def _problem(rule: Rule, value: object) -> str:
    if rule.required and not value:
        return "is required"
    if value is None:
        return ""
    if isinstance(value, str):
        return _text_problem(rule, value)
    if rule.least_value is not None and isinstance(value, int) and value < rule.least_value:
        return f"must be at least {rule.least_value}"
    if rule.most_seconds is not None:
        return _wait_problem(rule.most_seconds, value)
    if rule.most and len(value) > rule.most:  # type: ignore[arg-type]
        return f"has {len(value)} entries; at most {rule.most} are allowed"  # type: ignore[arg-type]
    return ""


def _text_problem(rule: Rule, value: str) -> str:
    if rule.most and len(value) > rule.most:
        return f"has {len(value)} characters; at most {rule.most} are allowed"
    if value and rule.pattern is not None and not rule.pattern.fullmatch(value):
        return f"must match {rule.pattern.pattern}"
    return ""


def _wait_problem(most: float, value: object) -> str:
    seconds = getattr(value, "seconds", 0) + getattr(value, "nanos", 0) / 1e9
    return "" if 0 <= seconds <= most else f"must be between 0 and {most:g} s"
