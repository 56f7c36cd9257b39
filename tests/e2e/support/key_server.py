"""A key server that a test takes away, and changes."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from tests.calls import Issuer


class KeyServer:
    """Serves the keys of issuers on a port that stays the same while it is down."""

    def __init__(self, port: int, issuers: Sequence[Issuer]) -> None:
        self.issuers = list(issuers)
        self.requests = 0
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/keys"

    async def up(self) -> None:
        """Begins to serve."""
        application = web.Application()
        application.router.add_get("/keys", self._keys)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def down(self) -> None:
        """Ends; connections are refused from now on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _keys(self, _: web.Request) -> web.Response:
        self.requests += 1
        return web.json_response({"keys": [issuer.jwk() for issuer in self.issuers]})


@asynccontextmanager
async def key_server(*issuers: Issuer, is_up: bool = True) -> AsyncIterator[KeyServer]:
    """Yields a key server with the keys of these issuers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = KeyServer(probe.getsockname()[1], issuers)
    if is_up:
        await server.up()
    try:
        yield server
    finally:
        await server.down()
