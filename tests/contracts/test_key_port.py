"""The port of the keys that verify tool calls: it serves them, and nothing else."""

import aiohttp
import pytest

from tests.tool_servers.served import published
from turnkeeper.start_errors import PortTaken
from turnkeeper.tools.remote.key_port import serving
from turnkeeper.tools.remote.tokens import CallTokens


async def test_it_serves_the_public_keys_and_nothing_else() -> None:
    tokens = CallTokens()
    async with published(tokens) as url, aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.headers["Cache-Control"] == "public, max-age=300"
            assert (await response.json()) == {"keys": list(tokens.key_set())}
        (key,) = tokens.key_set()
        assert set(key) == {"kty", "crv", "alg", "use", "kid", "x"}, "no private part"
        root = url.removesuffix("/.well-known/jwks.json")
        for path in ("", "/", "/metrics", "/.well-known/", "/.well-known/jwks.json/", "/.well-known/../metrics"):
            async with session.get(f"{root}{path}") as response:
                assert response.status == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            async with session.request(method, url) as response:
                assert response.status == 405, method


async def test_a_taken_port_is_named_with_its_own_setting() -> None:
    tokens = CallTokens()
    async with published(tokens) as url:
        port = int(url.split(":")[2].partition("/")[0])
        with pytest.raises(PortTaken, match="choose another --jwks-port"):
            async with serving(tokens.key_set, "127.0.0.1", port, share_port=False):
                pass
