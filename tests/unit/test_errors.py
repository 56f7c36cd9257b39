"""One table of errors: the proto's options, the codes and the classes say the same, and 24 of them never change."""

import pickle
import re
from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper import errors
from turnkeeper.codes import Code, ErrorDetail, Family
from turnkeeper.errors import SessionError
from turnkeeper.errors_by_code import error_of, leaves
from turnkeeper.pb.v1 import error_pb2

PREFIX = "SESSION_ERROR_CODE_"
VALUES = {
    value.name.removeprefix(PREFIX): value for value in error_pb2.SessionErrorCode.DESCRIPTOR.values if value.number
}
FOR_EVER = (
    "SESSION_NOT_FOUND",
    "SESSION_NOT_ACTIVE",
    "SESSION_EXPIRED",
    "SESSION_SUSPENDED",
    "AGENT_NOT_FOUND",
    "AGENT_CONFIG_ERROR",
    "AGENT_NOT_AVAILABLE",
    "LLM_TIMEOUT",
    "LLM_RATE_LIMIT",
    "LLM_API_ERROR",
    "LLM_CONTENT_FILTER",
    "LLM_TOKEN_LIMIT",
    "TOOL_NOT_FOUND",
    "TOOL_EXECUTION_ERROR",
    "TOOL_TIMEOUT",
    "TOOL_PERMISSION_DENIED",
    "TOOL_VALIDATION_ERROR",
    "APPROVAL_NOT_FOUND",
    "APPROVAL_EXPIRED",
    "APPROVAL_ALREADY_PROCESSED",
    "INTERNAL_ERROR",
    "RATE_LIMIT_EXCEEDED",
    "SERVICE_UNAVAILABLE",
    "INVALID_REQUEST",
)
"""The first 24, in order, from 1. Written out, so that no change of the code changes the test with it."""

FAMILIES: tuple[type[SessionError], ...] = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.Aborted,
    errors.ResourceExhausted,
    errors.Unavailable,
)
ABOUT_THE_CALL = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED", "NOT_FOUND"}
"""Statuses that a mesh acts on: they never speak of a turn."""
OF_A_TURN = {
    *(code for code in Code if code.name.startswith(("LLM_", "TOOL_"))),
    Code.AGENT_CONFIG_ERROR,
    Code.BUDGET_EXCEEDED,
    Code.RUN_DEFECT,
}


def option(code: Code) -> error_pb2.ErrorCodeOptions:
    options: error_pb2.ErrorCodeOptions = VALUES[code.name].GetOptions().Extensions[error_pb2.error_code]
    return options


def test_the_24_keep_their_names_and_numbers() -> None:
    assert [Code(number).name for number in range(1, 25)] == list(FOR_EVER)
    assert [error_pb2.SessionErrorCode.Name(number) for number in range(1, 25)] == [  # type: ignore[arg-type]
        PREFIX + name for name in FOR_EVER
    ]


def test_the_enum_of_the_proto_and_the_codes_are_one() -> None:
    assert {code.name: code.value for code in Code} == {name: value.number for name, value in VALUES.items()}


def test_every_code_has_one_class_and_every_class_one_code() -> None:
    classes = leaves()
    assert set(classes) == set(Code)
    assert len(set(classes.values())) == len(Code)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_class_has_the_status_that_the_proto_gives_its_code(code: Code) -> None:
    assert leaves()[code].family == option(code).grpc_code


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_code_has_an_advice(code: Code) -> None:
    assert option(code).retry != error_pb2.RETRY_ADVICE_UNSPECIFIED


def sentences() -> dict[str, str]:
    """Each code's comment in the proto."""
    text = (Path(__file__).parents[2] / "protos/turnkeeper/v1/error.proto").read_text()
    enum = text.split("enum SessionErrorCode {")[1].split("\n}\n")[0]
    matches = re.findall(r"((?:  // .*\n)+)  SESSION_ERROR_CODE_(\w+) = \d+", enum)
    return {name: " ".join(line.strip("/ ") for line in comment.splitlines()) for comment, name in matches}


def test_a_class_has_the_sentence_that_the_proto_has_for_its_code() -> None:
    messages = {code.name: leaf().message for code, leaf in leaves().items()}
    assert messages == {name: sentence for name, sentence in sentences().items() if name != "UNSPECIFIED"}


@pytest.mark.parametrize("code", sorted(OF_A_TURN), ids=lambda code: code.name)
def test_the_failure_of_a_turn_never_looks_like_ours(code: Code) -> None:
    assert leaves()[code].family.name not in ABOUT_THE_CALL


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_family_is_caught_by_its_own_class(family: type[SessionError]) -> None:
    members = [leaf for leaf in leaves().values() if leaf.family == family.family]
    own = [leaf for leaf in members if issubclass(leaf, family)]
    alone = {"ToolPermissionDenied", "CursorExpired", "InternalError"}
    assert {leaf.__name__ for leaf in members} - {leaf.__name__ for leaf in own} <= alone


def test_an_error_survives_being_kept_with_a_turn() -> None:
    error = errors.LlmRateLimit(
        "Wait.", metadata={"model": "small"}, session_id="s", turn_id="t", retry_after=timedelta(seconds=2)
    )
    again = error_of(error.to_event(), session_id="s", turn_id="t")
    assert type(again) is errors.LlmRateLimit
    assert again.to_status() == error.to_status()


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_kept_code_becomes_its_class_again(code: Code) -> None:
    error = error_of(ErrorDetail(code=code, message="What now."))
    assert (error.code, error.message, type(error)) == (code, "What now.", leaves()[code])


def test_a_dictionary_for_logs_names_what_is_known() -> None:
    error = errors.TurnInProgress(session_id="s", turn_id="t", metadata={"turn_id": "t"})
    assert error.to_dict() == {
        "code": "TURN_IN_PROGRESS",
        "status": "ABORTED",
        "message": error.message,
        "metadata": {"turn_id": "t"},
        "session_id": "s",
        "turn_id": "t",
    }
    limited = errors.QuotaExceeded(retry_after=timedelta(milliseconds=1500), cursor="place").to_dict()
    assert (limited["retry_after_s"], limited["cursor"]) == (1.5, "place")


def test_an_error_keeps_its_own_copy_of_what_it_is_given() -> None:
    metadata, fields = {"a": "1"}, {"field": "is wrong"}
    error = errors.InvalidRequest(metadata=metadata, fields=fields)
    metadata.clear()
    fields.clear()
    assert (error.metadata, error.fields) == ({"a": "1"}, {"field": "is wrong"})


def test_the_families_are_canonical_grpc_numbers() -> None:
    import grpc  # noqa: PLC0415 - the errors themselves know nothing of it

    by_number = {code.value[0]: code.name for code in grpc.StatusCode}
    assert {family.name: by_number[family.value] for family in Family} == {
        family.name: family.name for family in Family
    }


def test_an_error_can_be_pickled() -> None:
    """Process pools and debuggers do it."""
    error = pickle.loads(pickle.dumps(errors.SessionNotFound("No such session.")))
    assert error.message == "No such session."
