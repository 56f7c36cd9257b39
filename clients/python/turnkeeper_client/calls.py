"""Unary calls, and lists that are read page by page."""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from turnkeeper_client.errors import SessionError
from turnkeeper_client.overload import BUDGET, seconds_to_try_again
from turnkeeper_client.requests import UNARY_TIMEOUT
from turnkeeper_client.wire import sleep, translated_errors

if TYPE_CHECKING:
    from turnkeeper_client.wire import UnaryMethod


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


async def call(
    method: "UnaryMethod[Request, Response]", request: Request, *, timeout: float = UNARY_TIMEOUT
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
            pause = seconds_to_try_again(error, deadline=deadline)
        else:
            BUDGET.answered()
            return response
        await sleep(pause)


async def every(
    method: "UnaryMethod[ListRequest, ListResponse]",
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
