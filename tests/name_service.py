"""A name service that a test controls, in place of the network's."""

import asyncio
import socket
from collections.abc import Callable, Sequence

import pytest


def answer_names(patch: pytest.MonkeyPatch, addresses_of: Callable[[str], Sequence[str]]) -> None:
    """Lets the names that the running event loop resolves have these addresses, until the test ends."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses_of(host)]

    patch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
