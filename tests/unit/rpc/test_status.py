"""An error on the wire: always ours and google's detail, each type once, never too large for a client."""

from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.codes import Code, Status
from turnkeeper.errors import InvalidRequest, QuotaExceeded, SessionError
from turnkeeper.errors_by_code import leaves
from turnkeeper.pb.v1 import error_pb2
from turnkeeper.rpc.status import (
    DOMAIN,
    FIRST_PUSHBACK_MS,
    MOST_BYTES,
    advice,
    details_bytes,
    may_resume,
    pushback,
    shown_message,
)

M = TypeVar("M", bound=Message)

FULL = Status(
    family=leaves()[Code.TURN_IN_PROGRESS].family,
    code=Code.TURN_IN_PROGRESS,
    message="Wait.",
    metadata={"turn_id": "t", "more": "x"},
    session_id="s",
    turn_id="t",
    cursor="place",
    retry_after=timedelta(seconds=2),
)
texts = st.sampled_from(["", "short", "x" * 5000, "é" * 5000, "🎉" * 5000, '"\\\n' * 2000, "\ud800" * 600])


def unpacked(status: Status, *, on_stream: bool = False) -> dict[str, Message]:
    """Detail type → detail; fails when a type comes twice."""
    status_message = status_pb2.Status.FromString(details_bytes(status, on_stream=on_stream))
    details: dict[str, Message] = {}
    for packed in status_message.details:
        name = packed.TypeName()
        assert name not in details
        kind = {**_KINDS}[name]
        details[name] = kind.FromString(packed.value)
    return details


_KINDS = {
    "turnkeeper.v1.SessionErrorDetail": error_pb2.SessionErrorDetail,
    **{
        f"google.rpc.{name}": getattr(error_details_pb2, name)
        for name in ("ErrorInfo", "RetryInfo", "BadRequest", "ResourceInfo", "PreconditionFailure", "QuotaFailure")
    },
}


def detail(status: Status, kind: type[M]) -> M:
    details = unpacked(status)[kind.DESCRIPTOR.full_name]
    assert isinstance(details, kind)
    return details


def test_error_info_carries_the_name_the_domain_and_the_metadata() -> None:
    info = unpacked(FULL)["google.rpc.ErrorInfo"]
    assert (info.reason, info.domain) == ("TURN_IN_PROGRESS", DOMAIN)  # type: ignore[attr-defined]
    assert dict(info.metadata) == {  # type: ignore[attr-defined]
        "turn_id": "t",
        "more": "x",
        "session_id": "s",
        "cursor": "place",
    }


def test_our_own_detail_is_typed() -> None:
    ours = detail(FULL, error_pb2.SessionErrorDetail)
    assert ours.code == error_pb2.SESSION_ERROR_CODE_TURN_IN_PROGRESS
    assert (ours.session_id, ours.turn_id, ours.cursor, ours.message) == ("s", "t", "place", "Wait.")
    assert ours.retry == error_pb2.RETRY_ADVICE_SAME_CALL
    assert ours.retry_after.seconds == 2


WAITS = {
    Code.STREAM_ROTATED: None,
    Code.SERVER_DRAINING: None,
    Code.SLOW_CONSUMER: timedelta(seconds=1),
    Code.SERVICE_UNAVAILABLE: timedelta(seconds=1),
    Code.RATE_LIMIT_EXCEEDED: timedelta(seconds=1),
    Code.OVERLOADED: timedelta(seconds=1),
    Code.SESSION_CONTENDED: timedelta(seconds=1),
}
"""The codes after which a stream may go on, and the wait before that. Written out: clients act on it."""


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_an_error_that_ends_a_stream_has_the_advice_whether_it_may_go_on(code: Code) -> None:
    status = leaves()[code](cursor="place").to_status()
    details = unpacked(status, on_stream=True)
    ours = details["turnkeeper.v1.SessionErrorDetail"]
    assert isinstance(ours, error_pb2.SessionErrorDetail)
    resumes = ours.retry == error_pb2.RETRY_ADVICE_RESUME_STREAM
    assert resumes is may_resume(code) is (code in WAITS)
    wait = ours.retry_after.ToTimedelta() if ours.HasField("retry_after") else None
    assert wait == WAITS.get(code)
    assert ("google.rpc.RetryInfo" in details) is (wait is not None)
    if not resumes:
        assert ours.retry == detail(status, error_pb2.SessionErrorDetail).retry, "what helps is the same as elsewhere"


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_unary_call_keeps_the_advice_of_its_code_and_has_no_wait(code: Code) -> None:
    status = leaves()[code]().to_status()
    ours = detail(status, error_pb2.SessionErrorDetail)
    assert ours.retry == advice(code)
    assert "google.rpc.RetryInfo" not in unpacked(status)
    if code in (Code.SERVICE_UNAVAILABLE, Code.RATE_LIMIT_EXCEEDED, Code.QUOTA_EXCEEDED, Code.AGENT_NOT_AVAILABLE):
        assert ours.retry == error_pb2.RETRY_ADVICE_SAME_CALL


def test_the_wait_of_the_error_itself_overrides_that_of_its_code() -> None:
    status = QuotaExceeded(retry_after=timedelta(seconds=5)).to_status()
    ours = unpacked(status, on_stream=True)["turnkeeper.v1.SessionErrorDetail"]
    assert isinstance(ours, error_pb2.SessionErrorDetail)
    assert ours.retry_after.ToTimedelta() == timedelta(seconds=5)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_which_details_an_error_has(code: Code) -> None:
    error = leaves()[code](session_id="s", fields={"a": "is wrong"} if code is Code.INVALID_REQUEST else None)
    names = {name.rpartition(".")[2] for name in unpacked(error.to_status())}
    expected = {"ErrorInfo", "SessionErrorDetail"}
    if code is Code.INVALID_REQUEST:
        expected.add("BadRequest")
    if (code.name.endswith("_NOT_FOUND") and error.family.name == "NOT_FOUND") or "_ALREADY_EXISTS" in code.name:
        expected.add("ResourceInfo")
    if error.family.name == "FAILED_PRECONDITION":
        expected.add("PreconditionFailure")
    if code in (Code.QUOTA_EXCEEDED, Code.BUDGET_EXCEEDED, Code.RATE_LIMIT_EXCEEDED, Code.OVERLOADED):
        expected.add("QuotaFailure")
    assert names == expected


def test_the_delay_is_in_two_details_for_two_kinds_of_clients() -> None:
    retry = unpacked(FULL)["google.rpc.RetryInfo"]
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=2)  # type: ignore[attr-defined]


def test_every_field_at_fault_is_named() -> None:
    error = InvalidRequest(fields={"agent": "is required", "labels": "has 33 entries"})
    bad = unpacked(error.to_status())["google.rpc.BadRequest"]
    assert {v.field: v.description for v in bad.field_violations} == error.fields  # type: ignore[attr-defined]
    info = unpacked(error.to_status())["google.rpc.ErrorInfo"]
    assert info.metadata["fields"] == "agent,labels"  # type: ignore[attr-defined]


@given(
    code=st.sampled_from(Code), message=texts, name=texts, value=texts, entries=st.integers(0, 40), late=st.booleans()
)
def test_the_worst_error_fits_and_keeps_the_two_that_are_promised(
    code: Code, message: str, name: str, value: str, entries: int, late: bool
) -> None:
    many = {f"{number}{name}": value for number in range(entries)}
    error: SessionError = leaves()[code](
        message,
        metadata=many,
        fields=many,
        session_id="s" * 128,
        turn_id="t" * 128,
        cursor="c" * 200,
        retry_after=timedelta(days=1) if late else None,
    )
    data = details_bytes(error.to_status())
    assert len(data) <= MOST_BYTES
    details = unpacked(error.to_status())
    assert {"google.rpc.ErrorInfo", "turnkeeper.v1.SessionErrorDetail"} <= set(details)
    ours = detail(error.to_status(), error_pb2.SessionErrorDetail)
    assert (ours.session_id, ours.turn_id, ours.cursor) == ("s" * 128, "t" * 128, "c" * 200)
    assert ("google.rpc.RetryInfo" in details) is late


@given(texts)
def test_the_message_fits_into_a_header(message: str) -> None:
    """gRPC writes each byte beyond printable ASCII as three."""
    shown = shown_message(replace(FULL, message=message))
    written = sum(1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3 for byte in shown.encode())
    assert written <= 1500
    assert shown == message or shown.endswith("…")


def test_a_text_that_was_cut_is_marked() -> None:
    ours = detail(replace(FULL, message="é" * 400), error_pb2.SessionErrorDetail)
    assert ours.message.endswith("…")
    assert 400 < len(ours.message.encode()) <= 500


@pytest.mark.parametrize(
    ("code", "given_", "kind", "name"),
    [
        (Code.SESSION_NOT_FOUND, {"session_id": "s"}, "session", "s"),
        (Code.TURN_NOT_FOUND, {"session_id": "s", "turn_id": "t"}, "turn", "t"),
        (Code.APPROVAL_NOT_FOUND, {"metadata": {"approval_id": "a"}}, "approval", "a"),
        (Code.AGENT_NOT_FOUND, {"metadata": {"agent": "clerk"}}, "agent", "clerk"),
        (Code.SESSION_ALREADY_EXISTS, {"session_id": "s"}, "session", "s"),
    ],
)
def test_a_resource_is_named_by_its_own_id(code: Code, given_: dict[str, object], kind: str, name: str) -> None:
    resource = unpacked(leaves()[code](**given_).to_status())["google.rpc.ResourceInfo"]  # type: ignore[arg-type]
    assert resource.resource_type == f"turnkeeper.v1/{kind}"  # type: ignore[attr-defined]
    assert resource.resource_name == name  # type: ignore[attr-defined]


def test_grpcs_own_retries_try_again_only_what_waiting_helps() -> None:
    """RESOURCE_EXHAUSTED is among the retryable statuses: without a number it would be tried again."""
    after = timedelta(milliseconds=1500)
    assert pushback(leaves()[Code.OVERLOADED](retry_after=after).to_status()) == "1500"
    assert pushback(leaves()[Code.RATE_LIMIT_EXCEEDED](retry_after=after).to_status()) == "1500"
    for code in (Code.LLM_RATE_LIMIT, Code.BUDGET_EXCEEDED, Code.QUOTA_EXCEEDED):
        assert pushback(leaves()[code]().to_status()) == "-1"
    assert pushback(leaves()[Code.LLM_RATE_LIMIT](retry_after=after).to_status()) == "-1"
    assert pushback(leaves()[Code.SERVICE_UNAVAILABLE](retry_after=after).to_status()) == ""


def test_grpcs_own_retries_ask_the_next_replica_soon_after_the_first_refusal_of_a_busy_one() -> None:
    for milliseconds, first in ((9000, FIRST_PUSHBACK_MS), (60, 60)):
        after = timedelta(milliseconds=milliseconds)
        assert pushback(leaves()[Code.OVERLOADED](retry_after=after).to_status(), is_first=True) == str(first)
        limited = leaves()[Code.RATE_LIMIT_EXCEEDED](retry_after=after).to_status()
        assert pushback(limited, is_first=True) == str(milliseconds)
    assert pushback(leaves()[Code.QUOTA_EXCEEDED]().to_status(), is_first=True) == "-1"
