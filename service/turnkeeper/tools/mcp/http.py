"""The connection to an MCP server over streamable HTTP, by a transport of ours below the SDK's.

The transport sends to the address that was checked, follows no redirect, and reads no more than a message may have. Of
each request that failed it states whether it was sent: the SDK alone does not.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Self, cast

import httpx2
import orjson
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from turnkeeper.start_errors import SettingError
from turnkeeper.tools.mcp.addresses import resolve
from turnkeeper.tools.mcp.link import CannotOpen, Link
from turnkeeper.tools.mcp.messages import (
    MESSAGE_BYTES,
    MOST_PARTS,
    Ending,
    Pace,
    answer,
    checked,
    message_of,
    parts_of,
)
from turnkeeper.tools.mcp.tables import HttpServer, filled_in

CONNECT_TIME: Final = 10.0
"""Seconds for a connection, with TLS."""
CLOSE_TIME: Final = 2.0
"""Seconds for the request that ends a session."""
IDLE_CONNECTION: Final = 2.0
"""Seconds that an unused connection is kept: less than servers keep it, so that none is closed as a call is sent."""
MOST_CONNECTIONS: Final = 256
"""Connections to one server, at most: one for each call at a time."""
REQUEST_COST: Final = 64 << 10
"""What a request costs of the pace: a server can make the SDK connect again and again to its stream of events."""
REFUSED: Final = frozenset({401, 403, 404, 405, 413, 415, 429})
"""Statuses of a server, or of a proxy before it, that did not look at the request's content."""
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""A server that is gone without a word is noticed within two minutes, also while a call waits for its answer."""
_SESSION: Final = "mcp-session-id"
_JSON: Final = "application/json"


@contextlib.asynccontextmanager
async def opened(server: HttpServer, environ: Mapping[str, str]) -> AsyncIterator[Link]:
    """Yields the link to the server. Opens no connection before something is sent.

    Raises CannotOpen if the name does not resolve, or to an address that is not allowed, or if a secret is not there.
    """
    try:
        headers = {name: filled_in(value, environ) for name, value in server.headers.items()}
        for name, value in headers.items():
            if not value.isascii() or not value.isprintable():
                raise CannotOpen(f"the value of its header {name} has characters that no header may have")
    except SettingError as error:
        raise CannotOpen(str(error)) from None
    transport = PinnedTransport(server)
    await transport.resolve()
    timeout = httpx2.Timeout(CONNECT_TIME, read=None)  # a call has its own time, and a stream of events may be silent
    client = httpx2.AsyncClient(
        transport=transport, headers={**headers, "accept-encoding": "identity"}, timeout=timeout, trust_env=False
    )
    async with (
        client,
        streamable_http_client(server.url, http_client=client, max_sse_event_size=MESSAGE_BYTES) as (read, write),
    ):
        yield Link(read=_CheckedStream(read), write=write)


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to one server, at the addresses that were checked. Each request gets a response, whatever happens.

    A request that failed gets one with an error that `messages.ending_of` knows.
    """

    def __init__(self, server: HttpServer) -> None:
        self._url = httpx2.URL(server.url)
        self._allow_private = server.allow_private
        self._addresses: Sequence[str] = ()
        self._pace = Pace()
        self._transport = httpx2.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=server.ca) if self._url.scheme == "https" else False,
            trust_env=False,  # a proxy would resolve the name by itself
            limits=httpx2.Limits(
                max_connections=MOST_CONNECTIONS, max_keepalive_connections=8, keepalive_expiry=IDLE_CONNECTION
            ),
            socket_options=_KEEP_ALIVE,
        )

    async def resolve(self) -> None:
        """Resolves the server's name, and checks its addresses. Raises CannotOpen."""
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        self._addresses = await resolve(self._url.host, port, allow_private=self._allow_private)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request, and returns the server's response, or one in its place."""
        await asyncio.sleep(self._pace.spend(REQUEST_COST))
        if request.method == "DELETE":
            request.extensions["timeout"] = httpx2.Timeout(CLOSE_TIME).as_dict()
        try:
            response = await self._send(request)
        except CannotOpen as error:
            return _in_place(Ending.NOT_SENT, str(error))
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            return _in_place(Ending.NOT_SENT, f"no connection: {str(error) or type(error).__name__}")
        except httpx2.HTTPError as error:
            return _in_place(Ending.UNKNOWN, f"the connection broke ({type(error).__name__})")
        return await self._read(request, response)

    async def _read(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        """Returns the response as far as the SDK may read it, or one in its place."""
        try:
            in_place = _refusal(request, response)
            if in_place is None and _type_of(response) == _JSON:
                in_place = await self._whole(request, response)
        except httpx2.HTTPError as error:
            in_place = _in_place(Ending.UNKNOWN, f"the connection broke ({type(error).__name__})")
        if in_place is None:
            return httpx2.Response(response.status_code, headers=response.headers, stream=_Events(response, self._pace))
        await response.aclose()
        return in_place

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request to the first address that takes a connection.

        Raises CannotOpen, and what the transport raises.
        """
        if (request.url.scheme, request.url.host, request.url.port) != (
            *(self._url.scheme, self._url.host, self._url.port),
        ):
            raise CannotOpen(f"a request to {request.url.host} is refused: the server is at {self._url.host}")
        if not self._addresses:
            await self.resolve()
        failed: Exception | None = None
        opening = _Opening()
        for address in self._addresses:
            at_address = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": self._url.host, "trace": opening.trace},
            )
            try:
                response = await self._transport.handle_async_request(at_address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failed = error
                continue
            except AttributeError:
                if not opening.has_failed:
                    raise
                failed = httpx2.ConnectError("it was reset as soon as it was open")
                continue
            self._addresses = (address,)
            return response
        self._addresses = ()  # resolved and checked again before the next request
        assert failed is not None
        raise failed

    async def _whole(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        """Returns a response in JSON once it is there whole, or an error in its place if it is too large."""
        body = bytearray()
        async for chunk in cast("AsyncIterator[bytes]", response.stream):
            body += chunk
            await asyncio.sleep(self._pace.spend(len(chunk)))
            if len(body) > MESSAGE_BYTES:
                return _in_place(Ending.UNFIT, f"it has more than {MESSAGE_BYTES} bytes")
        if response.status_code == 400 and _SESSION in request.headers and _rejects_unread(bytes(body)):
            return _in_place(Ending.SESSION_LOST, "it does not accept the session any more")
        if not isinstance(message_of(bytes(body)), SessionMessage):
            if response.status_code >= 400:
                return _in_place_of_status(response.status_code)
            return _in_place(Ending.UNFIT, "it cannot be read as a message, or has too many parts")
        headers = {"content-type": _JSON}
        if _SESSION in response.headers:
            headers[_SESSION] = response.headers[_SESSION]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body))


def _refusal(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response | None:
    """Returns an error in place of a response that answers nothing; None for one that the SDK understands."""
    status = response.status_code
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return _in_place(Ending.UNKNOWN, "it compresses its answers, though it was told not to")
    if 300 <= status < 400:
        place = response.headers.get("location", "another address").partition("?")[0]
        return _in_place(
            Ending.NOT_SENT, f"it redirects to {place[:200]}: write that address as its url if it is right"
        )
    if status == 404 and _SESSION in request.headers:
        return _in_place(Ending.SESSION_LOST, "it does not know the session any more")
    if status >= 500:
        return _in_place(Ending.UNKNOWN, f"it answers with HTTP status {status}")
    if status in (401, 403):
        return _in_place(Ending.NOT_SENT, f"it refuses the credentials of its headers (HTTP status {status})")
    is_probe = request.headers.get("mcp-method") == "server/discover"  # an older server does not know it
    if status < 400 or is_probe or _type_of(response) == _JSON:
        return None
    return _in_place_of_status(status)


def _in_place_of_status(status: int) -> httpx2.Response:
    """Returns a response in place of one that has an error's status, and no message of the protocol."""
    return _in_place(Ending.NOT_SENT if status in REFUSED else Ending.UNKNOWN, f"it answers with HTTP status {status}")


def _in_place(ending: Ending, message: str) -> httpx2.Response:
    """Returns a response that tells how the request ended, for the SDK to pass on."""
    content = answer(None, ending, message).message.model_dump_json(by_alias=True).encode()
    return httpx2.Response(503, headers={"content-type": _JSON}, content=content)


def _rejects_unread(body: bytes) -> bool:
    """Returns True for an error that names no request: servers in TypeScript answer so to a session that is gone."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(message, dict) and isinstance(message.get("error"), dict) and message.get("id") is None


def _type_of(response: httpx2.Response) -> str:
    content_type: str = response.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower()


class _Opening:
    """Whether a connection failed to open, whatever was raised.

    The library sets options on a socket that it no longer has if the server resets the connection at once.
    """

    def __init__(self) -> None:
        self.has_failed = False
        """True if the connection that was opened last failed to."""

    async def trace(self, name: str, _: Mapping[str, Any]) -> None:
        """Takes note of what the library does."""
        if name.startswith("connection.connect_tcp."):
            self.has_failed = name.endswith(".failed")


class _Events(httpx2.AsyncByteStream):
    """The body of a stream of events, read at a pace."""

    def __init__(self, response: httpx2.Response, pace: Pace) -> None:
        self._response = response
        self._pace = pace

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the body. Raises SSEError at an event with too many parts, which the SDK takes for the end."""
        parts = 0
        async for chunk in cast("AsyncIterator[bytes]", self._response.stream):
            events = chunk.count(b"\n\n") + chunk.count(b"\r\n\r\n")
            parts = parts_of(chunk) + (0 if events else parts)
            if parts > MOST_PARTS:
                raise httpx2.SSEError(f"an event has more than {MOST_PARTS} parts")
            await asyncio.sleep(self._pace.spend(len(chunk) + events * Pace.MESSAGE))
            yield chunk

    async def aclose(self) -> None:
        """Closes the response."""
        await self._response.aclose()


class _CheckedStream:
    """The SDK's stream of what a server sends, with each message measured."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def last_context(self) -> Any:
        """Returns the context in which the message was sent that was received last."""
        return self._stream.last_context

    def __aiter__(self) -> "_CheckedStream":
        """Returns the stream."""
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        """Returns the next message."""
        item = await self._stream.__anext__()
        return checked(item) if isinstance(item, SessionMessage) else item

    async def __aenter__(self) -> Self:
        """Returns the stream."""
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the stream."""
        await self._stream.__aexit__(*error)
