"""The key port: serves the keys that verify the tokens of tool calls, as a JWK set over HTTP."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

from aiohttp import web

from turnkeeper.start_errors import PortTaken

PATH: Final = "/.well-known/jwks.json"
MAX_AGE: Final = 300
"""Seconds for which a reader may keep the set."""

SETTINGS: Final = "jwks-"
"""The beginning of the name of its setting."""

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(
    keys: Callable[[], Sequence[Mapping[str, str]]], host: str, port: int, *, share_port: bool
) -> AsyncIterator[str]:
    """Serves what `keys` returns until the end of the block, and yields the address of the set.

    The keys are public, so that there is neither TLS nor a credential. `share_port`: other processes listen on the
    port, too; they have the same keys. Raises PortTaken.
    """
    headers = {"Cache-Control": f"public, max-age={MAX_AGE}"}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"keys": list(keys())}, headers=headers)

    app = web.Application()
    app.router.add_get(PATH, answer)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=15, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), port, reuse_port=share_port or None)
        try:
            await site.start()
        except OSError as error:
            raise PortTaken(f"{host}:{port}", error, kind=SETTINGS) from None
        taken = runner.addresses[0][1]
        address = f"http://{host}:{taken}{PATH}"
        logger.info("keys of tool calls are served on %s", address)
        yield address
    finally:
        await runner.cleanup()
