"""Serves a tool server in this process, and connects a source to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc import aio

from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.remote.channel import RemoteServer
from turnkeeper.tools.remote.key_port import serving as serving_keys
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.remote.tokens import CallTokens

NAME = "ledger"


def a_context(key: str = "s:call", *, attempt: int = 1, arguments_json: str = "{}", **given: Any) -> ToolContext:
    """Returns the context of a start that was stored just now."""
    chosen: dict[str, Any] = {
        "tenant": "default",
        "session_id": "s",
        "turn_id": "t",
        "tool_call_id": "call",
        "principal": "ada",
        "start_time": datetime.now(UTC),
        "timeout": timedelta(seconds=10),
    }
    return ToolContext(key=key, attempt=attempt, arguments_json=arguments_json, **{**chosen, **given})


def a_key_file(folder: Path, name: str = "tools.pem") -> Path:
    """Writes a new private key that signs the calls of tool servers, and returns its file."""
    file = folder / name
    key = Ed25519PrivateKey.generate()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


@contextlib.asynccontextmanager
async def served(servicer: Any, *, certificate: bytes = b"") -> AsyncIterator[str]:
    """Serves what has `add_to`, and yields its address. `certificate`: one and its key, PEM, for TLS."""
    server = aio.server()
    servicer.add_to(server)
    if certificate:
        credentials = grpc.ssl_server_credentials([(certificate, certificate)])
        taken = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        taken = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{taken}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def published(tokens: CallTokens) -> AsyncIterator[str]:
    """Publishes the keys, and yields the URL of the set."""
    async with serving_keys(tokens.key_set, "127.0.0.1", 0, share_port=False) as url:
        yield url


@contextlib.asynccontextmanager
async def connected(
    address: str, tokens: CallTokens | None = None, *, ca: bytes | None = None, plaintext: bool = True, name: str = NAME
) -> AsyncIterator[RemoteTools]:
    """Connects a source to the server at this address. It has listed the tools, if the server does."""
    server = RemoteServer(name=name, target=address, plaintext=plaintext, ca=ca)
    source = RemoteTools(server, tokens or CallTokens())
    running = asyncio.create_task(source.run())
    try:
        await asyncio.sleep(0)
        yield source
    finally:
        running.cancel()
        await asyncio.wait([running])
