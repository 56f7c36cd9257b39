"""What providers say, mapped to what we say."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from turnkeeper.model.failure import TABLE, Reason, failure
from turnkeeper.model.openai_failure import event_failure, retry_after, status_failure

NOW = datetime(2031, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"code": "context_length_exceeded"}, Reason.CONTEXT_LENGTH),
        (400, {"code": 400, "type": "exceed_context_size_error", "message": "m"}, Reason.CONTEXT_LENGTH),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, Reason.CONTEXT_LENGTH),
        (413, None, Reason.CONTEXT_LENGTH),
        (400, {"code": "content_filter"}, Reason.CONTENT_FILTER),
        (400, {"code": None, "innererror": {"code": "content_filter"}}, Reason.CONTENT_FILTER),
        (400, {"code": None, "message": 7}, Reason.BAD_REQUEST),
        (422, "text", Reason.BAD_REQUEST),
        (400, "the prompt is too long", Reason.CONTEXT_LENGTH),
        (401, None, Reason.UNAUTHORIZED),
        (403, {}, Reason.UNAUTHORIZED),
        (402, {}, Reason.QUOTA),
        (404, {"code": "model_not_found"}, Reason.NOT_FOUND),
        (408, None, Reason.SERVER_TIMEOUT),
        (409, None, Reason.SERVER_ERROR),
        (429, {"code": "insufficient_quota"}, Reason.QUOTA),
        (429, {"type": "insufficient_quota", "code": None}, Reason.QUOTA),
        (429, {"code": "rate_limit_exceeded"}, Reason.RATE_LIMIT),
        (429, b"", Reason.RATE_LIMIT),
        (500, {"message": "maximum context length"}, Reason.CONTEXT_LENGTH),
        (503, {"message": "maximum context length"}, Reason.SERVER_ERROR),
        (503, [1], Reason.SERVER_ERROR),
        (599, None, Reason.SERVER_ERROR),
        (418, None, Reason.BAD_REQUEST),
    ],
)
def test_http_errors(status: int, body: object, reason: Reason) -> None:
    raised = status_failure(status, body, {}, now=lambda: NOW)
    assert raised.detail.metadata == {"reason": reason, "http_status": str(status)}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 401}, Reason.UNAUTHORIZED),
        ({"code": "429"}, Reason.RATE_LIMIT),
        ({"code": 502}, Reason.ERROR_EVENT),
        ({"code": "9" * 5000}, Reason.ERROR_EVENT),
        ({"code": -1, "message": "context window exceeded"}, Reason.CONTEXT_LENGTH),
        ("too many tokens", Reason.CONTEXT_LENGTH),
        (True, Reason.ERROR_EVENT),
    ],
)
def test_errors_inside_a_stream(error: object, reason: Reason) -> None:
    assert event_failure(error).detail.metadata["reason"] == reason


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "20"}, timedelta(seconds=20)),
        ({"retry-after": "1.5"}, timedelta(seconds=1.5)),
        ({"retry-after": "-3"}, timedelta()),
        ({"retry-after": "1e300"}, timedelta(days=1)),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "20", "retry-after-ms": "1500"}, timedelta(seconds=1.5)),
        ({"retry-after": "20", "retry-after-ms": "x"}, timedelta(seconds=20)),
        ({"retry-after": format_datetime(NOW + timedelta(minutes=5), usegmt=True)}, timedelta(minutes=5)),
        ({"retry-after": format_datetime(NOW - timedelta(minutes=5), usegmt=True)}, timedelta()),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, timedelta(days=1)),
        ({"retry-after": "Wed, 01 Jan 2031 00:00:09 -0000"}, timedelta(seconds=9)),
        (
            {
                "retry-after": format_datetime(NOW + timedelta(hours=2, seconds=3), usegmt=True),
                "date": format_datetime(NOW + timedelta(hours=2), usegmt=True),
            },
            timedelta(seconds=3),
        ),
    ],
)
def test_retry_after(headers: dict[str, str], wait: timedelta | None) -> None:
    assert retry_after(headers, now=lambda: NOW) == wait


def test_every_reason_has_a_row_with_what_to_do() -> None:
    assert set(TABLE) == set(Reason)
    for reason, row in TABLE.items():
        assert row.retryable == ("call RetryTurn" in row.message and reason is not Reason.QUOTA)
        assert failure(reason).detail.code is row.code
