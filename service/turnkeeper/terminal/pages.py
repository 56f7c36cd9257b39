"""Reads lists of the service page by page into one response, as `--json` prints it."""

from typing import Any, Protocol, TypeVar, cast

from google.protobuf.message import Message
from grpc import aio

from turnkeeper_client.calls import call

MOST_OF_A_PAGE = 100


class ListRequest(Protocol):
    """The request of a list."""

    page_size: int
    page_token: str


Request = TypeVar("Request", bound=ListRequest)
Response = TypeVar("Response", bound=Message)


async def read(method: aio.UnaryUnaryMultiCallable[Request, Response], request: Request, *, most: int) -> Response:
    """Returns the first `most` items as one response. Its token is that of the last page read. Changes `request`."""
    request.page_size = min(most, MOST_OF_A_PAGE)
    response = cast(Any, await call(method, request))
    left = most - request.page_size
    while response.next_page_token and left > 0:
        request.page_token, request.page_size = response.next_page_token, min(left, MOST_OF_A_PAGE)
        response.next_page_token = ""
        response.MergeFrom(await call(method, request))
        left -= request.page_size
    return cast(Response, response)
