"""What a caller sees when something goes wrong."""

import socket
import traceback
from datetime import timedelta

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from turnkeeper_client import Client
from turnkeeper_client.errors import FAMILIES, FailedPrecondition, InvalidArgument, SessionError, TransportError
from turnkeeper_client.pb.v1 import error_pb2
from turnkeeper_client.pb.v1.error_pb2 import SessionErrorCode, SessionErrorDetail
from turnkeeper_client_testing.server import Refuse, refuse, stage

CODES = [code for code in SessionErrorCode.values() if code]


async def error_of(refusal: Refuse) -> SessionError | TransportError:
    async with stage(config="mesh") as on:
        on.script.answers.append(refusal)
        try:
            await on.client.agents.get("a")
        except (SessionError, TransportError) as error:
            return error
    pytest.fail("the call went well")


@pytest.mark.parametrize("code", CODES)
async def test_every_code_is_raised_as_its_family(code: SessionErrorCode.ValueType) -> None:
    refusal = refuse(code, cursor="c1")
    error = await error_of(refusal)
    assert type(error) is FAMILIES[refusal.status]
    assert error.status is refusal.status
    assert error.code == code
    assert SessionErrorCode.Name(code) == f"SESSION_ERROR_CODE_{error.reason}"
    assert (error.session_id, error.turn_id, error.cursor) == ("s1", "t1", "c1")
    assert error.metadata == {"from": "script"}
    assert error.retry_after is None
    assert error.reason in str(error)


async def test_how_long_to_wait() -> None:
    refusal = refuse(error_pb2.SESSION_ERROR_CODE_LLM_RATE_LIMIT, retry_after=timedelta(seconds=1.5))
    error = await error_of(refusal)
    assert isinstance(error, SessionError)
    assert error.retry_after == timedelta(seconds=1.5)


async def test_how_long_to_wait_without_retry_info() -> None:
    detail = SessionErrorDetail(code=error_pb2.SESSION_ERROR_CODE_LLM_RATE_LIMIT)
    detail.retry_after.FromTimedelta(timedelta(seconds=2))
    error = await error_of(Refuse(status=grpc.StatusCode.RESOURCE_EXHAUSTED, details=(detail,)))
    assert isinstance(error, SessionError)
    assert error.retry_after == timedelta(seconds=2)
    assert error.reason == "LLM_RATE_LIMIT"


async def test_which_fields_are_wrong() -> None:
    wrong = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="content[0].text", description="too long")]
    )
    refusal = refuse(error_pb2.SESSION_ERROR_CODE_INVALID_REQUEST)
    error = await error_of(Refuse(status=refusal.status, details=(*refusal.details, wrong)))
    assert isinstance(error, InvalidArgument)
    assert error.fields == {"content[0].text": "too long"}


async def test_error_info_alone_is_enough() -> None:
    info = error_details_pb2.ErrorInfo(reason="SESSION_SUSPENDED", domain="turnkeeper")
    error = await error_of(Refuse(status=grpc.StatusCode.FAILED_PRECONDITION, details=(info,)))
    assert isinstance(error, FailedPrecondition)
    assert error.code == error_pb2.SESSION_ERROR_CODE_SESSION_SUSPENDED


@pytest.mark.parametrize("with_detail", [True, False])
async def test_a_code_of_a_later_release_keeps_its_reason(with_detail: bool) -> None:
    info = error_details_pb2.ErrorInfo(reason="TOO_COLD", domain="turnkeeper")
    detail = SessionErrorDetail(code=SessionErrorCode.ValueType(777))
    details: tuple[Message, ...] = (info, detail) if with_detail else (info,)
    error = await error_of(Refuse(status=grpc.StatusCode.ABORTED, details=details))
    assert isinstance(error, SessionError)
    assert error.reason == "TOO_COLD"
    assert error.code == (777 if with_detail else 0)


async def test_a_status_of_a_later_release_is_still_an_error_of_the_service() -> None:
    info = error_details_pb2.ErrorInfo(reason="LOST", domain="turnkeeper")
    error = await error_of(Refuse(status=grpc.StatusCode.DATA_LOSS, details=(info,)))
    assert type(error) is SessionError
    assert error.status is grpc.StatusCode.DATA_LOSS


async def test_an_error_without_details_of_the_service_is_a_transport_error() -> None:
    foreign = error_details_pb2.ErrorInfo(reason="RATE_LIMIT_EXCEEDED", domain="proxy.example")
    for details in ((), (foreign,)):
        error = await error_of(Refuse(status=grpc.StatusCode.RESOURCE_EXHAUSTED, details=details))
        assert type(error) is TransportError
        assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "by the script" in str(error)


async def test_a_refused_connection_is_reported_with_the_next_step() -> None:
    with socket.socket() as bound:  # nothing listens there, and nothing else can
        bound.bind(("127.0.0.1", 0))
        async with Client(f"127.0.0.1:{bound.getsockname()[1]}", config="mesh") as client:
            with pytest.raises(TransportError, match=r"Is the server started, and is this its port\?$"):
                await client.agents.get("a")


async def test_an_error_is_one_paragraph_with_what_to_do_and_has_one_traceback() -> None:
    wrong = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="wait", description="too long")]
    )
    refusal = refuse(error_pb2.SESSION_ERROR_CODE_INVALID_REQUEST)
    invalid = await error_of(Refuse(status=refusal.status, details=(*refusal.details, wrong)))
    assert str(invalid) == "INVALID_REQUEST: by the script. wait: too long."
    failed = await error_of(refuse(error_pb2.SESSION_ERROR_CODE_LLM_RATE_LIMIT, retry_after=timedelta(seconds=2)))
    assert str(failed).endswith('For another attempt: session.retry("t1"). Wait for 2 s first.')
    late = await error_of(Refuse(status=grpc.StatusCode.DEADLINE_EXCEEDED))
    assert str(late).endswith("repeat it with the same request_id.")
    for error in (invalid, failed, late):
        assert traceback.format_exception(error)[-1] == f"turnkeeper_client.errors.{type(error).__name__}: {error}\n"
        assert "".join(traceback.format_exception(error)).count("Traceback") == 1
