"""Turns what the `openai` client raises and what a provider reports into a ModelFailure without any of its text."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp
import httpx2
import openai
from aiohttp.http_exceptions import BadStatusLine

from turnkeeper import descriptors
from turnkeeper.model import server_error
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.dialect import ABOUT_MESSAGES, ABOUT_OTHERS
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.server_error import ServerError

_BY_STATUS: Mapping[int, Reason] = {
    401: Reason.UNAUTHORIZED,
    402: Reason.QUOTA,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    408: Reason.SERVER_TIMEOUT,
    409: Reason.SERVER_ERROR,
    413: Reason.CONTEXT_LENGTH,
    424: Reason.SERVER_ERROR,
    425: Reason.SERVER_ERROR,
    429: Reason.RATE_LIMIT,
}
_OPEN = frozenset({Reason.BAD_REQUEST, Reason.NOT_FOUND, Reason.SERVER_ERROR, Reason.ERROR_EVENT})
"""Reasons behind which a refused field may be."""
_REFUSING = frozenset({0, 400, 404, 405, 415, 422, 500, 501})
"""HTTP statuses of a refused field; 0 is an error that names none, inside an answer."""
_FIELDS_OF_EVENTS = (b"data", b"event", b"id:", b"retry", b":")
"""The beginning of a line of a stream."""
_LACK_PAUSE = timedelta(seconds=2)
"""The pause before a call is tried again for which no descriptor was left."""
_LONGEST_WAIT = timedelta(days=1)
"""The longest pause that is taken from a provider's `Retry-After`."""


@contextmanager
def openai_failures() -> Iterator[None]:
    """Raises a ModelFailure for every exception of the client in its block.

    The failure has no cause on purpose: a provider's text may repeat a key or a prompt, and a chained exception is
    printed with every traceback.
    """
    try:
        yield
    except openai.APIConnectionError as error:
        raise _unreached(_causes(error)) from None
    except aiohttp.ClientError as error:
        # Exceptions that the transport does not translate: the answer is not HTTP, from its first line or after it.
        reason = Reason.NO_CONNECTION if isinstance(_causes(error)[-1], BadStatusLine) else Reason.CUT
        raise failure(reason, cause=type(error).__name__) from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        raise failure(Reason.CUT, cause=type(_causes(error)[-1]).__name__) from None
    except openai.OpenAIError as error:
        raise failure(Reason.SERVER_ERROR, cause=type(error).__name__) from None


@contextmanager
def sending_failures() -> Iterator[None]:
    """Raises a ModelFailure for an exception before the answer begins that the client lets through."""
    try:
        yield
    except (OSError, OverflowError) as error:
        if any(map(descriptors.is_lack, _causes(error))):
            raise _lack() from None
        raise failure(Reason.NO_CONNECTION, cause=type(_causes(error)[-1]).__name__) from None
    except ValueError as error:  # of an address, a header or a proxy, by another parser than the one of the start
        raise failure(Reason.BAD_PROVIDER, cause=type(error).__name__) from None


def _unreached(causes: list[BaseException]) -> ModelFailure:
    """Returns the failure of a connection. The client reports each one as a timeout; the causes have the reason."""
    if any(isinstance(cause, httpx2.TooManyRedirects | httpx2.RemoteProtocolError) for cause in causes):
        return failure(Reason.REDIRECTED)
    if any(map(descriptors.is_lack, causes)):
        return _lack()
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return failure(Reason.CONNECT_TIMEOUT)
    return failure(Reason.NO_CONNECTION, cause=type(causes[-1]).__name__)


def _lack() -> ModelFailure:
    """Returns the failure of a call for which this process has no descriptor left."""
    return failure(Reason.NO_DESCRIPTOR, retry_after=_LACK_PAUSE)


class ReportedFailure(ModelFailure):
    """A failure that the server itself reported, with its report. The message has no text of the server's."""

    def __init__(self, failed: ModelFailure, report: ServerError, *, http_status: int) -> None:
        """`http_status` is 0 for an error inside an answer."""
        super().__init__(
            failed.detail,
            retryable=failed.retryable,
            retry_after=failed.retry_after,
            repeated_once=failed.repeated_once or not http_status,
        )
        self.report = report
        self.http_status = http_status


def may_refuse(failed: ReportedFailure) -> bool:
    """Returns True if the server may have refused a field of the request, as far as reason and status tell."""
    return (
        Reason(failed.detail.metadata["reason"]) in _OPEN and (failed.http_status or failed.report.status) in _REFUSING
    )


def may_refuse_messages(failed: ReportedFailure) -> bool:
    """Returns True if the server may have refused the messages of the request, as far as reason and text tell."""
    if names_messages(failed):
        return Reason(failed.detail.metadata["reason"]) in _OPEN and failed.http_status in _REFUSING
    is_open = Reason(failed.detail.metadata["reason"]) is Reason.BAD_REQUEST
    return is_open and ABOUT_OTHERS.isdisjoint(failed.report.words)


def names_messages(failed: ReportedFailure) -> bool:
    """Returns True if the server's own words name the messages."""
    report = failed.report
    return any(ABOUT_MESSAGES.search(text) for text in report.texts) or any(
        path.removeprefix("body.").startswith("messages") for path in report.paths
    )


def field_failure(failed: ReportedFailure, field: str) -> ReportedFailure:
    """Returns the failure for a field that the server refuses and that cannot be left out unasked."""
    return ReportedFailure(
        failure(Reason.FIELD_REFUSED, http_status=failed.http_status, field=field),
        failed.report,
        http_status=failed.http_status,
    )


def status_failure(
    status: int, body: object, headers: Mapping[str, str], *, now: Callable[[], datetime]
) -> ReportedFailure:
    """Returns the failure for an HTTP error answer."""
    report = server_error.read(body)
    reason = report.reason(status) or _BY_STATUS.get(status)
    if reason is None:
        reason = Reason.SERVER_ERROR if status >= 500 else Reason.BAD_REQUEST
    wait = retry_after(headers, now=now)
    wait = report.retry_after if wait is None else wait
    return ReportedFailure(
        failure(reason, http_status=status, retry_after=wait and _within_reason(wait)), report, http_status=status
    )


def event_failure(error: object, *, before_output: bool = False) -> ReportedFailure:
    """Returns the failure for an error inside a stream, or in place of one. Its status counts as that of HTTP."""
    report = server_error.read(error)
    reason = report.reason(report.status) or _BY_STATUS.get(report.status)
    if reason is None:
        reason = Reason.BAD_REQUEST if 400 <= report.status < 500 else Reason.ERROR_EVENT
    wait = report.retry_after and _within_reason(report.retry_after)
    failed = failure(reason, http_status=report.status, retry_after=wait, before_output=before_output)
    return ReportedFailure(failed, report, http_status=0)


def page_failure(body: bytes) -> ModelFailure:
    """Returns the failure for a body that ends without an answer. `body` is its start if it had no event at all.

    The beginning of a stream is not reported: it may hold a part of the answer.
    """
    report = server_error.read(body)
    if not report.texts or body.lstrip().startswith(_FIELDS_OF_EVENTS):
        return failure(Reason.NO_END)
    return ReportedFailure(failure(Reason.NO_END), report, http_status=0)


def retry_after(headers: Mapping[str, str], *, now: Callable[[], datetime]) -> timedelta | None:
    """Returns the pause that the provider asks for, one day at most; None if it asks for none.

    Reads `retry-after-ms`, else `retry-after` in seconds or as an HTTP date. `headers` finds names in any case. A date
    counts from the answer's own `date` if there is one, because two clocks need not agree.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, ""))
        if seconds is not None:
            return _within_reason(timedelta(seconds=min(seconds * unit, _LONGEST_WAIT.total_seconds())))
    date = _date(headers.get("retry-after", ""))
    return None if date is None else _within_reason(date - (_date(headers.get("date", "")) or now()))


def _causes(error: BaseException) -> list[BaseException]:
    """Returns the error and its causes, the first cause last."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _number(text: str) -> float | None:
    """Returns a finite number; None for any other text."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _date(text: str) -> datetime | None:
    """Returns the time of an HTTP date, in UTC if it names no zone; None for any other text."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _within_reason(wait: timedelta) -> timedelta:
    """Returns the pause, at least zero and at most a day."""
    return min(max(wait, timedelta()), _LONGEST_WAIT)
