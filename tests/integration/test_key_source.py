"""Where an issuer's keys come from: what a server may answer, and what it may not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from turnkeeper.identity import key_source
from turnkeeper.identity.key_source import MOST_BYTES, KeyFile, KeyServer, KeysUnreadable

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[KeyServer]:
    application = web.Application()
    application.router.add_get("/keys", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = KeyServer(f"http://ada:a-password@127.0.0.1:{runner.addresses[0][1]}/keys?key=secret")
    try:
        yield server
    finally:
        await server.close()
        await runner.cleanup()


async def test_the_body_of_an_answer() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="{}")

    async with serving(answer) as server:
        assert [await server.read() for _ in range(3)] == [b"{}"] * 3
        assert "secret" not in server.name
        assert "password" not in server.name


@pytest.mark.parametrize("status", [204, 301, 302, 404, 500])
async def test_an_answer_that_is_not_200_is_refused_and_no_redirect_followed(status: int) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"location": "/elsewhere"})

    async with serving(answer) as server:
        with pytest.raises(KeysUnreadable, match=f"its status is {status}"):
            await server.read()


async def test_an_endless_answer_is_cut() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x" * (64 << 10))
        return response

    async with serving(answer) as server:
        with pytest.raises(KeysUnreadable, match=f"it has more than {MOST_BYTES} bytes"):
            await server.read()


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_source, "TIME", 0.1)

    released = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response()

    async with serving(answer) as server:
        with pytest.raises(KeysUnreadable, match=r"it did not answer within 0\.1 s"):
            await server.read()
        released.set()


async def test_a_server_that_is_not_there() -> None:
    server = KeyServer("http://127.0.0.1:1/keys")
    with pytest.raises(KeysUnreadable, match="ClientConnectorError"):
        await server.read()
    await server.close()


async def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    file = KeyFile(path)
    with pytest.raises(KeysUnreadable, match="No such file or directory"):
        await file.read()
    path.write_bytes(b"{}")
    assert await file.read() == b"{}"
    path.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(KeysUnreadable, match="it has more than"):
        await file.read()
