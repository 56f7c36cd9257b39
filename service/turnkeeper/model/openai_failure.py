"""Turns what the `openai` client raises and what a provider reports into a ModelFailure without any of its text."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import aiohttp
import httpx2
import openai
from aiohttp.http_exceptions import BadStatusLine

from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.dialect import CODES, SENTENCES
from turnkeeper.model.failure import Reason, failure

_BY_STATUS: Mapping[int, Reason] = {
    401: Reason.UNAUTHORIZED,
    402: Reason.QUOTA,
    403: Reason.UNAUTHORIZED,
    404: Reason.NOT_FOUND,
    408: Reason.SERVER_TIMEOUT,
    409: Reason.SERVER_ERROR,
    413: Reason.CONTEXT_LENGTH,
    425: Reason.SERVER_ERROR,
    429: Reason.RATE_LIMIT,
}
_LONGEST_WAIT = timedelta(days=1)
"""The longest pause that is taken from a provider's `Retry-After`."""


@contextmanager
def openai_failures(now: Callable[[], datetime]) -> Iterator[None]:
    """Raises a ModelFailure for every exception of the client in its block.

    The failure has no cause on purpose: a provider's text may repeat a key or a prompt, and a chained exception is
    printed with every traceback.
    """
    try:
        yield
    except openai.APIStatusError as error:
        raise status_failure(error.status_code, error.body, error.response.headers, now=now) from None
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


def _unreached(causes: list[BaseException]) -> ModelFailure:
    """Returns the failure of a connection. The client reports each one as a timeout; the causes have the reason."""
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return failure(Reason.CONNECT_TIMEOUT)
    return failure(Reason.NO_CONNECTION, cause=type(causes[-1]).__name__)


def status_failure(
    status: int, body: object, headers: Mapping[str, str], *, now: Callable[[], datetime]
) -> ModelFailure:
    """Returns the failure for an HTTP error answer."""
    reason = _reason(status, body)
    if reason is None:
        reason = Reason.SERVER_ERROR if status >= 500 else Reason.BAD_REQUEST
    return failure(reason, http_status=status, retry_after=retry_after(headers, now=now))


def event_failure(error: object) -> ModelFailure:
    """Returns the failure for an error inside a stream."""
    code = error.get("code") if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int | str) and re.fullmatch("[1-5][0-9][0-9]", str(code)) else 0
    return failure(_reason(status, error) or Reason.ERROR_EVENT)


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


def _reason(status: int, body: object) -> Reason | None:
    """Returns the reason by the body's codes, its text, or the status; None if none of them is known."""
    error = body if isinstance(body, dict) else {}
    inner = error.get("innererror")
    words = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    reasons = [CODES[word] for word in words if isinstance(word, str) and word in CODES]
    if reasons:
        return reasons[0]
    text = error.get("message") if error else body
    if status in (0, 400, 422) and isinstance(text, str) and SENTENCES[Reason.CONTEXT_LENGTH].search(text):
        return Reason.CONTEXT_LENGTH
    return _BY_STATUS.get(status)


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
