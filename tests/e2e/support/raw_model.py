"""A model server that sends exactly the bytes that a test has written, from a thread of its own."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from aiohttp import web

PART_BYTES = 64 * 1024
"""Bytes of a body that are written at a time."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An HTTP answer. `chunks` become events of a stream, `body` is sent as it is."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def events(*chunks: object) -> bytes:
    """Returns the chunks as a stream that ends well."""
    lines = {id(chunk): chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode() for chunk in chunks}
    return b"".join(b"data: " + line + b"\n\n" for line in (*(lines[id(chunk)] for chunk in chunks), b"[DONE]"))


def chunk(finish: str | None = None, **delta: object) -> dict[str, object]:
    """Returns one chunk of a completion."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


AFTER_TOOLS = RawAnswer(events(chunk("stop", content="So.")))
"""What is sent after a tool's result."""


@contextlib.contextmanager
def raw_model(answers: Mapping[str, RawAnswer]) -> Iterator[str]:
    """Serves the answer that the last user message names, and AFTER_TOOLS for any other. Yields the base URL."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = Future()

    async def complete(request: web.Request) -> web.StreamResponse:
        messages = json.loads(await request.read())["messages"]
        last = messages[-1]
        answer = answers.get(last["content"], AFTER_TOOLS) if last["role"] == "user" else AFTER_TOOLS
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": "text/event-stream"})
        response.headers.update(answer.headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(answer.body), PART_BYTES):
                await response.write(answer.body[start : start + PART_BYTES])
            await response.write_eof()
        return response

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stop = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), stop, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="raw model")
    thread.start()
    loop, stop, url = ready.result(30)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
