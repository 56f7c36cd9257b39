"""Unary calls: their errors as classes of this package, request ids, and lists read page by page."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from turnkeeper_client.errors import ClientClosed, SessionError, TransportError
from turnkeeper_client.overload import BUDGET, wait_to_try_again
from turnkeeper_client.pb.v1.message_pb2 import Part
from turnkeeper_client.status import from_rpc_error

# Seconds. The service configs have the same limits for the raw stubs, but only a limit given with the call reaches
# the service.
UNARY_TIMEOUT = 10.0
WAIT_TIMEOUT = 130.0
STREAM_TIMEOUT = 900.0


class PageRequest(Protocol):
    """The request of a list: it has a page token."""

    page_token: str


class PageResponse(Protocol):
    """The response of a list: it has the token of the next page."""

    @property
    def next_page_token(self) -> str: ...


Request = TypeVar("Request")
Response = TypeVar("Response")
ListRequest = TypeVar("ListRequest", bound=PageRequest)
ListResponse = TypeVar("ListResponse", bound=PageResponse)
Item = TypeVar("Item")


def new_request_id() -> str:
    """Returns a new id for one logical call; it stays the same when the call is repeated."""
    return uuid4().hex


def parts(content: str | Sequence[Part]) -> Sequence[Part]:
    """Returns a message's content: text alone becomes one part."""
    return [Part(text=content)] if isinstance(content, str) else content


def duration(value: timedelta | None) -> Duration | None:
    """Converts to a protobuf duration; None stays unset."""
    if value is None:
        return None
    converted = Duration()
    converted.FromTimedelta(value)
    return converted


async def call(
    method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, timeout: float = UNARY_TIMEOUT
) -> Response:
    """Calls the method, for `timeout` seconds at most. Raises a SessionError or TransportError.

    A call that is refused as OVERLOADED, or beyond a rate, is made again after the delay that came with it, within
    `timeout`.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with translated_errors():
                response = await method(request, timeout=deadline - time.monotonic())
        except SessionError as error:
            await wait_to_try_again(error, deadline=deadline)
            continue
        BUDGET.answered()
        return response


async def every(
    method: aio.UnaryUnaryMultiCallable[ListRequest, ListResponse],
    request: ListRequest,
    items: Callable[[ListResponse], Iterable[Item]],
) -> AsyncIterator[Item]:
    """Yields the items of all pages. Changes `request`."""
    while True:
        response = await call(method, request)
        for item in items(response):
            yield item
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translates gRPC's errors inside the block: to SessionError, TransportError or ClientClosed."""
    try:
        yield
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except aio.UsageError as error:
        raise ClientClosed("the client is closed; open a new one") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The caller's task was not cancelled: the channel was closed during the call.
        raise TransportError(grpc.StatusCode.CANCELLED, "the client was closed during the call") from None
