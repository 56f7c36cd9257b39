"""Errors as real servers write them: what they mean, and which field of the request they refuse."""

import tomllib
from pathlib import Path

import orjson
import pytest

from tests.cpu_time import least_cpu_seconds
from turnkeeper.codes import Code
from turnkeeper.model.failure import Reason
from turnkeeper.model.openai_failure import event_failure, may_refuse, status_failure
from turnkeeper.model.server_error import is_error, read
from turnkeeper.telemetry.redact import Redactor


def _reason(status: int, body: str) -> str:
    failed = status_failure(status, body.encode(), {}, now=lambda: pytest.fail("no date"))
    return failed.detail.metadata["reason"]


ERRORS = tomllib.loads(Path(__file__).with_name("server_errors.toml").read_text(encoding="utf-8"))
TOO_LONG = {error["server"]: (error["status"], error["body"]) for error in ERRORS["too_long"]}


@pytest.mark.parametrize("server", TOO_LONG)
def test_a_conversation_that_is_too_long_in_the_words_of_each_server(server: str) -> None:
    assert _reason(*TOO_LONG[server]) == Reason.CONTEXT_LENGTH
    failed = status_failure(TOO_LONG[server][0], TOO_LONG[server][1].encode(), {}, now=lambda: pytest.fail("no date"))
    assert failed.detail.code is Code.LLM_TOKEN_LIMIT
    assert not may_refuse(failed), "no field is left out for it, whatever the text names"


@pytest.mark.parametrize("server", [name for name, (status, _) in TOO_LONG.items() if status in (400, 413, 422, 500)])
def test_the_same_inside_an_answer(server: str) -> None:
    _, body = TOO_LONG[server]
    if body.startswith("<"):
        return
    failed = event_failure(orjson.loads(body))
    assert failed.detail.code is Code.LLM_TOKEN_LIMIT
    assert failed.http_status == 0


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        *((error["status"], error["body"], error["reason"]) for error in ERRORS["other"]),
        (400, "[" * 100_000, Reason.BAD_REQUEST),
        (400, '{"error":' * 3000 + "1" + "}" * 3000, Reason.BAD_REQUEST),
        (400, "\xff\xfe\x00", Reason.BAD_REQUEST),
        (400, "", Reason.BAD_REQUEST),
    ],
)
def test_other_errors(status: int, body: str, reason: Reason) -> None:
    assert _reason(status, body) == reason


FIELDS = ("max_tokens", "parallel_tool_calls", "response_format", "stream_options", "temperature", "tools")


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        *((error["body"], error["refused"]) for error in ERRORS["refusal"]),
        ('{"error":"' + "x" * 60_000 + ' stream_options is not supported"}', []),
    ],
)
def test_fields_that_a_server_refuses(body: str, refused: list[str]) -> None:
    assert list(read(body).refused(FIELDS)) == refused


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": "m"}},
        {"error": "m"},
        [{"error": {"code": 400, "message": "m"}}],
        {"object": "error", "message": "m", "code": 400},
        {"type": "error", "error": {"type": "overloaded_error"}},
        {"detail": "Not authenticated"},
        {"success": False, "errors": [{"code": 5006, "message": "m"}]},
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None},
        {"code": 500, "msg": "busy"},
        {"statusCode": 429, "message": "Rate limit is exceeded."},
        {"error": {"message": "m"}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]},
    ],
)
def test_what_is_an_error_in_place_of_an_answer(chunk: object) -> None:
    assert is_error(chunk)


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        [],
        {"choices": []},
        {"error": None, "choices": [{"delta": {"content": "x"}}]},
        {"usage": {"prompt_tokens": 1}, "choices": []},
        {"type": "ping"},
        {"message": {"role": "assistant", "content": "x"}},
        {"base_resp": {"status_code": 0}, "choices": [{"delta": {}}]},
        {"choices": [{"message": {"content": "x"}}], "detail": "x"},
    ],
)
def test_what_is_none(chunk: object) -> None:
    assert not is_error(chunk)


def test_an_error_inside_an_answer_names_its_status() -> None:
    assert event_failure({"code": 429, "message": "m"}).detail.code is Code.LLM_RATE_LIMIT
    assert event_failure([{"error": {"code": 401, "message": "m"}}]).detail.metadata["reason"] == Reason.UNAUTHORIZED
    assert event_failure({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}).detail.metadata[
        "reason"
    ] == (Reason.QUOTA)


def test_a_pause_that_the_body_asks_for() -> None:
    body = orjson.dumps(
        {
            "error": {
                "code": 429,
                "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}],
            }
        }
    )
    failed = status_failure(429, body, {}, now=lambda: pytest.fail("no date"))
    assert failed.retry_after is not None
    assert failed.retry_after.total_seconds() == 34


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"error":{"message":"Two\\nlines","type":"t"}}', "Two lines"),
        (
            '{"error":{"message":"Provider returned error","metadata":{"raw":"{\\"error\\":\\"Busy\\"}"}}}',
            "Provider returned error / Busy",
        ),
        ('{"detail":[{"loc":["body","a"],"msg":"A"},{"loc":["body","b"],"msg":"A"}]}', "A"),
        ("upstream connect error", "upstream connect error"),
        (
            "<html><head><title>502 Bad Gateway</title><style>x{}</style></head><body><h1>Sorry</h1></body></html>",
            "502 Bad Gateway Sorry",
        ),
        ('{"id":"1","created":2}', ""),
        ("", ""),
    ],
)
def test_the_sentence_of_a_server(body: str, sentence: str) -> None:
    assert read(body).sentence == sentence


@pytest.mark.parametrize(
    "body",
    [
        "<" * 64_000,
        '{"error":"' + "tools " * 10_000 + '"}',
        orjson.dumps([{"message": "tools temperature " * 20}] * 400).decode(),
        '{"error":"' + "model " * 10_000 + '"}',
        orjson.dumps({"error": ["<script>" * 500] * 100}).decode(),
        "{" * 64_000,
    ],
)
def test_no_body_keeps_the_reader_busy(body: str) -> None:
    def look() -> None:
        error = read(body)
        error.reason(400)
        error.refused(FIELDS)
        Redactor()(error.sentence)

    assert least_cpu_seconds(look) < 0.1
