"""Pairs each dataclass with its message, and names the fields that only one side has.

A field that is added to one side alone fails a test until it is named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import Descriptor
from hypothesis import strategies as st

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent, AgentLimits
from turnkeeper.domain.approval import Approval, Vote
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.delegation import Delegation
from turnkeeper.domain.event import KINDS
from turnkeeper.domain.message import Part, ToolRequest, Usage
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.session import Session
from turnkeeper.domain.turn import PendingItem, Turn
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, error_pb2, event_pb2, message_pb2, session_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A dataclass and its message.

    `only_proto`: the fields that only the message has, each with the reason. `only_ours`: the dataclass's fields
    that never leave the service.
    """

    kind: Any
    message: Descriptor
    rename: Mapping[str, str] = field(default_factory=dict)
    only_proto: Mapping[str, str] = field(default_factory=dict)
    only_ours: frozenset[str] = frozenset()


LATER = "comes with a later release"
FROM_HEAD = "filled from the session's head"
FROM_CONTEXT = "filled by the codec, from the event or the status"

PAIRS = (
    Pair(
        kind=Session,
        message=session_pb2.Session.DESCRIPTOR,
        rename={"id": "session_id"},
        only_proto={
            "metadata": "a Struct, filled from metadata_json",
            "last_sequence": FROM_HEAD,
            "active_turn_id": FROM_HEAD,
            "queued_turns": FROM_HEAD,
            "expire_time": LATER,
        },
        only_ours=frozenset(
            {"tenant", "fingerprint", "metadata_json", "unknown", "remembered", "restored", "resumes_as"}
        ),
    ),
    Pair(
        kind=Turn,
        message=chat_pb2.Turn.DESCRIPTOR,
        rename={"id": "turn_id"},
        only_ours=frozenset(
            {
                "tenant",
                "agent",
                "agent_version",
                "next_message_id",
                "options",
                "tries",
                "lapses",
                "finish_reason",
                "trace",
                "caused_by",
                "through",
            }
        ),
    ),
    Pair(
        kind=Approval,
        message=approval_pb2.Approval.DESCRIPTOR,
        rename={"id": "approval_id"},
        only_proto={
            **dict.fromkeys(["mixed_script_words", "late_result_mixed_script_words"], "made from the texts"),
            "needed": "counted from the votes",
            "longest_ttl": "made from the ttl",
        },
        only_ours=frozenset({"tenant", "sequence", "result_json", "time_left"})
        | {"causers", "extended", "extension_sequence", "expiring_time", "is_expiring"},
    ),
    Pair(
        kind=Agent,
        message=agent_pb2.Agent.DESCRIPTOR,
        only_proto={"version": "a hash of the content", "create_time": LATER},
        only_ours=frozenset({"base_url", "api_key_env", "temperature", "limit_field", "omit"})
        | {"extra_headers", "extra_body_json", "follow_redirects", "max_concurrent_turns"},
    ),
    Pair(kind=PolicyRule, message=agent_pb2.PolicyRule.DESCRIPTOR),
    Pair(kind=Approvers, message=event_pb2.Approvers.DESCRIPTOR),
    Pair(kind=Vote, message=approval_pb2.Vote.DESCRIPTOR, only_ours=frozenset({"arguments_hash"})),
    Pair(kind=Delegation, message=approval_pb2.ApprovalDelegation.DESCRIPTOR, only_ours=frozenset({"tenant"})),
    Pair(kind=AgentLimits, message=agent_pb2.AgentLimits.DESCRIPTOR),
    Pair(kind=PendingItem, message=chat_pb2.PendingItem.DESCRIPTOR),
    Pair(
        kind=Part,
        message=message_pb2.Part.DESCRIPTOR,
        only_proto={"image": LATER, "file": LATER, "data_json": LATER},
    ),
    Pair(kind=ToolRequest, message=message_pb2.ToolRequest.DESCRIPTOR),
    Pair(kind=Usage, message=message_pb2.Usage.DESCRIPTOR),
    Pair(
        kind=ErrorDetail,
        message=error_pb2.SessionErrorDetail.DESCRIPTOR,
        only_proto={"session_id": FROM_CONTEXT, "turn_id": FROM_CONTEXT, "cursor": FROM_CONTEXT, "retry": FROM_CONTEXT},
    ),
    *(
        Pair(kind=kind, message=event_pb2.Event.DESCRIPTOR.fields_by_name[name].message_type)
        for name, kind in KINDS.items()
    ),
)

LATER_EVENTS = {
    "budget_reached",
    "context_compacted",
    "session_expired",
}
PREVIEWS = {"content_delta", "tool_progress"}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Returns a strategy for every value that a field of this type can hold."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return st.one_of(*(values_of(option) for option in inner))
    if origin is tuple:
        return st.lists(values_of(inner[0]), max_size=3).map(tuple)
    if origin is frozenset:
        return st.frozensets(values_of(inner[0]), max_size=3)
    if origin is not None:
        return st.dictionaries(values_of(str), values_of(str), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    annotations = get_type_hints(annotation)
    return st.builds(
        annotation, **{name: values_of(field_annotation) for name, field_annotation in annotations.items()}
    )


_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    str: st.text(max_size=12),
    int: st.integers(0, 2**31 - 1),
    bool: st.booleans(),
    float: st.floats(0, 2),
    datetime: st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    timedelta: st.timedeltas(timedelta(), timedelta(days=1000)),
}
