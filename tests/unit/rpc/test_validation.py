"""The rules name fields that exist; a request that breaks them is refused with every field at fault."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from turnkeeper.errors import InvalidRequest, NotImplementedYet
from turnkeeper.identity.caller import DEFAULT_CALLER
from turnkeeper.pb.v1 import (
    agent_pb2,
    approval_pb2,
    audit_pb2,
    chat_pb2,
    event_pb2,
    message_pb2,
    operator_pb2,
    session_pb2,
)
from turnkeeper.rpc import validation
from turnkeeper.rpc.sessions import new_session
from turnkeeper.rpc.validation import RULES

MESSAGES: dict[str, Descriptor] = {
    name: descriptor
    for module in (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
    for name, descriptor in module.DESCRIPTOR.message_types_by_name.items()
}
SERVICES = [
    service
    for module in (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
HASH = "a" * 64


def send(**fields: Any) -> chat_pb2.SendMessageRequest:
    content = [message_pb2.Part(text="hello")]
    return chat_pb2.SendMessageRequest(**{"session_id": "s", "request_id": "r", "content": content, **fields})


def decide(**fields: Any) -> approval_pb2.DecideApprovalRequest:
    approve = event_pb2.APPROVAL_DECISION_APPROVE
    return approval_pb2.DecideApprovalRequest(
        **{"approval_id": "a", "decision": approve, "arguments_hash": HASH, **fields}
    )


def refused(request: Message) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as raised:
        validation.check(request)
    return raised.value.fields


@pytest.mark.parametrize("name", RULES)
def test_the_rules_name_requests_and_fields_that_exist(name: str) -> None:
    for path in RULES[name]:
        descriptor: Descriptor | None = MESSAGES[name]
        for part in path.split("."):
            assert descriptor is not None, path
            field = descriptor.fields_by_name[part]
            descriptor = field.message_type


@pytest.mark.parametrize("name", RULES)
def test_a_rule_fits_the_type_of_its_field(name: str) -> None:
    for path, rule in RULES[name].items():
        field = MESSAGES[name].fields_by_name[path.split(".")[0]]
        for part in path.split(".")[1:]:
            field = field.message_type.fields_by_name[part]
        is_text = field.type == field.TYPE_STRING and not field.is_repeated
        assert rule.pattern is None or is_text
        assert not rule.max_length or is_text
        assert not rule.max_items or is_list(field)
        assert rule.min_value is None or field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
        assert not rule.max_seconds or field.message_type.full_name == "google.protobuf.Duration"


def is_list(field: FieldDescriptor) -> bool:
    return field.is_repeated or (field.message_type is not None and field.message_type is FieldMask.DESCRIPTOR)


def lists_of(message: Descriptor, prefix: str = "") -> Iterator[str]:
    for field in message.fields:
        if is_list(field):
            yield prefix + field.name
        elif field.message_type is not None and field.message_type.file.package == message.file.package:
            yield from lists_of(field.message_type, f"{prefix}{field.name}.")


@pytest.mark.parametrize("name", RULES)
def test_every_list_of_a_request_has_a_limit_before_anything_reads_it(name: str) -> None:
    limited = {path for path, rule in RULES[name].items() if rule.max_items or rule.not_implemented}
    assert not set(lists_of(MESSAGES[name])) - limited


def test_every_request_that_names_something_has_rules() -> None:
    requests = {
        method.input_type.name
        for service in SERVICES
        for method in service.methods
        if method.input_type.name in RULES or method.input_type.name.startswith(("Get", "List", "Wait", "Send"))
    }
    later, empty = {"ListAgentVersionsRequest"}, {"ListReplicasRequest"}
    assert requests - set(RULES) == later | empty


@pytest.mark.parametrize(
    "request_",
    [
        send(),
        send(session_id="", create_session=chat_pb2.CreateSessionParams(agent="clerk")),
        send(session_id="A-z_0.9:x" + "y" * 119, wait=Duration(seconds=120), request_id="é" * 128),
        decide(reason="x" * 2000),
        session_pb2.CreateSessionRequest(agent="clerk", labels={str(n): "" for n in range(32)}),
        session_pb2.WatchEventsRequest(session_id="s", live_only=True),
        session_pb2.ExportSessionRequest(session_id="s"),
        audit_pb2.ExportAuditRequest(tenant="a.B-c_1", after_seal=1),
        chat_pb2.GetTurnRequest(session_id="s", turn_id="t", wait=Duration()),
        agent_pb2.ListAgentsRequest(page_size=1000),
        session_pb2.UpdateSessionRequest(
            session=session_pb2.Session(session_id="s", state=99),  # type: ignore[arg-type]
            update_mask=FieldMask(paths=["title"]),
        ),
    ],
    ids=lambda request: type(request).__name__,
)
def test_good_requests_pass(request_: Message) -> None:
    validation.check(request_)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (send(request_id=""), {"request_id": "is required"}),
        (send(content=[]), {"content": "is required"}),
        (send(request_id="x" * 129), {"request_id": "has 129 characters; at most 128 are allowed"}),
        (send(session_id="a b"), {"session_id": "must match [A-Za-z0-9._:-]{1,128}"}),
        (send(session_id="s\n"), {"session_id": "must match [A-Za-z0-9._:-]{1,128}"}),
        (send(session_id="x" * 129), {"session_id": "must match [A-Za-z0-9._:-]{1,128}"}),
        (send(content=[message_pb2.Part(text="x")] * 65), {"content": "has 65 entries; at most 64 are allowed"}),
        (send(wait=Duration(seconds=121)), {"wait": "must be between 0 and 120 s"}),
        (send(wait=Duration(seconds=-1)), {"wait": "must be between 0 and 120 s"}),
        (send(wait=Duration(seconds=120, nanos=1000)), {"wait": "must be between 0 and 120 s"}),
        (send(if_busy=9), {"if_busy": "9 is not a value of IfBusy"}),
        (
            send(limits=chat_pb2.TurnLimits(max_iterations=-1)),
            {"limits.max_iterations": "must be at least 0"},
        ),
        (
            send(create_session=chat_pb2.CreateSessionParams(agent="The Clerk", title="x" * 201)),
            {
                "create_session.agent": "must match [a-z0-9_-]{1,64}",
                "create_session.title": "has 201 characters; at most 200 are allowed",
            },
        ),
        (send(create_session=chat_pb2.CreateSessionParams()), {"create_session.agent": "is required"}),
        (decide(decision=0), {"decision": "is required"}),
        (decide(arguments_hash=""), {"arguments_hash": "is required"}),
        (
            session_pb2.ListSessionsRequest(page_size=-1, states=[99]),  # type: ignore[list-item]
            {"page_size": "must be at least 0", "states": "99 is not a value of SessionState"},
        ),
        (
            operator_pb2.ListActiveTurnsRequest(filter=operator_pb2.TurnFilter(states=[1, 99])),  # type: ignore[list-item]
            {"filter.states": "99 is not a value of TurnState"},
        ),
        (
            session_pb2.ListSessionsRequest(states=[99] * 33),  # type: ignore[list-item]
            {"states": "has 33 entries; at most 32 are allowed"},
        ),
        (
            session_pb2.UpdateSessionRequest(
                session=session_pb2.Session(session_id="s"), update_mask=FieldMask(paths=["title"] * 33)
            ),
            {"update_mask": "has 33 entries; at most 32 are allowed"},
        ),
        (
            session_pb2.CreateSessionRequest(labels={str(n): "" for n in range(33)}),
            {"agent": "is required", "labels": "has 33 entries; at most 32 are allowed"},
        ),
        (
            session_pb2.WatchEventsRequest(after_sequence=-1),
            {"session_id": "is required", "after_sequence": "must be at least 0"},
        ),
        (
            session_pb2.EndSessionRequest(session_id="s", reason="x" * 1001),
            {"reason": "has 1001 characters; at most 1000 are allowed"},
        ),
        (chat_pb2.RetryTurnRequest(session_id="s", request_id="r"), {"turn_id": "is required"}),
        (approval_pb2.WaitApprovalRequest(), {"approval_id": "is required"}),
        (agent_pb2.GetAgentRequest(), {"name": "is required"}),
    ],
)
def test_a_bad_request_is_refused_with_every_field_at_fault(request_: Message, fields: dict[str, str]) -> None:
    assert refused(request_) == fields


def test_the_message_names_every_field_too() -> None:
    with pytest.raises(InvalidRequest) as raised:
        validation.check(decide(decision=0, arguments_hash=""))
    assert raised.value.message == "The request is not valid: decision is required; arguments_hash is required."


LATER = [(name, path) for name, table in RULES.items() for path, rule in table.items() if rule.not_implemented]


@pytest.mark.parametrize(("name", "path"), LATER, ids=lambda value: value)
def test_a_field_of_a_later_release_is_refused_by_name(name: str, path: str) -> None:
    field = MESSAGES[name].fields_by_name[path]
    request = _class_of(name)()
    if field.is_repeated:
        getattr(request, path).add()
    elif field.message_type is not None:
        getattr(request, path).SetInParent()
    else:
        setattr(request, path, "x")
    with pytest.raises(NotImplementedYet) as raised:
        validation.check(request)
    assert raised.value.metadata == {"field": path}
    assert path in raised.value.message


def _class_of(name: str) -> type[Message]:
    modules = (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
    kind: type[Message] = next(getattr(module, name) for module in modules if hasattr(module, name))
    return kind


def create(**fields: Any) -> session_pb2.CreateSessionRequest:
    return session_pb2.CreateSessionRequest(**{"session_id": "s", "agent": "clerk", **fields})


def a_struct(**values: Any) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (create(session_id=""), "request_id", "is required without session_id"),
        (create(labels={"": "x"}), "labels", "an empty key"),
        (create(labels={"k" * 129: ""}), "labels", "over 128 characters"),
        (create(labels={"k": "v" * 129}), "labels", "over 128 characters"),
        (create(metadata=a_struct(text="x" * 16_400)), "metadata", "is over 16384 bytes as JSON"),
        (create(metadata=a_struct(list=[0] * 5000)), "metadata", "is over 16384 bytes as JSON"),
        (
            create(metadata=a_struct(number=float("nan"))),
            "metadata",
            "holds NaN or an infinity; JSON has neither",
        ),
        (
            create(metadata=a_struct(number=float("inf"))),
            "metadata",
            "holds NaN or an infinity; JSON has neither",
        ),
    ],
)
def test_a_new_session_is_checked_beyond_the_rules_of_its_fields(
    request_: session_pb2.CreateSessionRequest, field: str, problem: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        new_session(request_, DEFAULT_CALLER)
    assert problem in raised.value.fields[field]


@pytest.mark.parametrize(
    "value",
    [
        [0] * 3200,
        [None] * 2700,
        [[]] * 4000,
        {str(n): 0 for n in range(1300)},
        {"a": {str(n): {} for n in range(1400)}},
    ],
    ids=["numbers", "nothing", "lists", "named numbers", "named objects"],
)
def test_metadata_just_under_16_kib_are_taken_whatever_they_hold(value: Any) -> None:
    """Their size in a request is larger than that of their JSON, but never by so much that it is refused."""
    text = new_session(create(metadata=a_struct(a=value)), DEFAULT_CALLER).metadata_json
    assert 15_000 < len(text) <= 16_384


def test_metadata_are_kept_as_the_same_text_in_any_order() -> None:
    metadata_json = new_session(create(metadata=a_struct(b=[1, None], a="é")), DEFAULT_CALLER).metadata_json
    assert metadata_json == '{"a": "é", "b": [1.0, null]}'
