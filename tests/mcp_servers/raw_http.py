"""A server over HTTP that answers as a test tells it, to see what becomes of the call. It speaks 2025-11-25."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
"""Answers the call of a tool; receives the request, and its message."""
TOOL = {"name": "act", "inputSchema": {"type": "object"}}


class RawServer:
    """What a test sets, and what the server has received."""

    def __init__(self) -> None:
        self.answer: Answer = done
        self.session = "session-1"
        """The session that the server knows; it has a new name with each handshake."""
        self.unknown_session: tuple[int, dict[str, None]] = (404, {"id": None})
        """The status and the id in the error for a session that it does not know; servers in TypeScript answer 400."""
        self.is_silent = False
        """True: it does not answer when its tools are to be listed."""
        self.closing: Callable[[str], Awaitable[None]] = at_once
        """Called before a request of another kind than POST is answered, with its method."""
        self.calls = 0
        """Calls that reached the tool."""
        self.methods: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.runner: web.AppRunner | None = None

    async def stop(self) -> None:
        """Closes the port and all connections."""
        if self.runner is not None:
            await self.runner.cleanup()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers a request."""
        self.headers.append(dict(request.headers))
        if request.method != "POST":
            self.methods.append(request.method)
            await self.closing(request.method)
            return web.Response(status=405 if request.method == "GET" else 200)
        message = await request.json()
        self.methods.append(message["method"])
        if message["method"] == "initialize":
            self.session = f"session-{len(self.methods)}"
            about = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "raw", "version": "1"},
            }
            return web.json_response(result(message, about), headers={"mcp-session-id": self.session})
        if message["method"] == "server/discover":
            return web.json_response(error(message, -32601), status=400)
        if request.headers.get("mcp-session-id") != self.session:
            status, number = self.unknown_session
            rejection = {"jsonrpc": "2.0", "error": {"code": -32000, "message": "no such session"}, **number}
            return web.json_response(rejection, status=status)
        if message["method"] == "tools/list":
            if self.is_silent:
                await asyncio.get_running_loop().create_future()
            return web.json_response(result(message, {"tools": [TOOL]}))
        if message["method"] == "tools/call":
            self.calls += 1
            return await self.answer(request, message)
        return web.Response(status=202)


async def at_once(_: str) -> None:
    """Does nothing."""


def result(message: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of a request."""
    return {"jsonrpc": "2.0", "id": message["id"], "result": value}


def error(message: dict[str, Any], code: int) -> dict[str, Any]:
    """Returns the error of a request."""
    return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": f"error {code}"}}


def text(message: dict[str, Any], value: str = "done") -> bytes:
    """Returns the result of a call as JSON."""
    return json.dumps(result(message, {"content": [{"type": "text", "text": value}]})).encode()


async def done(_: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Answers as a server should."""
    return web.Response(body=text(message), content_type="application/json")


async def broken(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    """Begins an answer in JSON, and closes the connection."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "9999"})
    await response.prepare(request)
    await response.write(text(message)[:20])
    assert request.transport is not None
    request.transport.abort()
    return response


async def dropped(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Closes the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def status(number: int, **headers: str) -> Answer:
    """Returns an answer with this status and no message."""

    async def answer(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=number, text="<html>", content_type="text/html", headers=headers)

    return answer


def refused(code: int, *, number: int = 200) -> Answer:
    """Returns an answer with an error of the protocol."""

    async def answer(_: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(error(message, code), status=number)

    return answer


def body(content: bytes, content_type: str, *, status: int = 200, encoding: str = "identity") -> Answer:
    """Returns an answer with this content."""
    headers = {"content-encoding": encoding}

    async def answer(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=content, content_type=content_type, headers=headers, status=status)

    return answer


def events(*chunks: bytes) -> Answer:
    """Returns an answer that is a stream of events, and ends."""

    async def answer(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for chunk in chunks:
                await response.write(chunk)
        return response

    return answer


def held(began: asyncio.Event, gone: asyncio.Event) -> Answer:
    """Returns an answer that begins a stream of events, and never ends it."""

    async def answer(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        began.set()
        try:
            while True:
                await response.write(b": still there\n\n")
                await asyncio.sleep(0.01)
        except (ConnectionError, asyncio.CancelledError):
            gone.set()
            raise

    return answer


@contextlib.asynccontextmanager
async def raw_server(port: int = 0, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Yields a server of this machine; port 0 takes a free one."""
    server = RawServer()
    app = web.Application()
    app.router.add_route("*", "/mcp", server.handle)
    runner = server.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, ssl_context=tls)
    await site.start()
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/mcp"
    try:
        yield server
    finally:
        await runner.cleanup()
