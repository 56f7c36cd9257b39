"""An MCP server over HTTPS: its certificate must be by the CAs of `ca`, and for the name of its address."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contracts.gateway import CERTIFICATE
from tests.mcp_servers.raw_http import RawServer, raw_server
from tests.mcp_servers.sources import a_context, at, running
from tests.name_service import answer_names
from turnkeeper.tools.contract import SourceUnreachable


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RawServer]:
    """A server whose certificate is for model.test, and of no CA that the system trusts."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    async with raw_server(tls=tls) as raw:
        yield raw


@pytest.mark.parametrize(
    ("host", "ca", "is_trusted"),
    [("model.test", CERTIFICATE, True), ("model.test", None, False), ("other.test", CERTIFICATE, False)],
)
async def test_a_server_is_trusted_by_its_certificate_alone(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, host: str, ca: Path | None, is_trusted: bool
) -> None:
    answer_names(monkeypatch, lambda _: ["127.0.0.1"])
    async with running(replace(at(server.url.replace("127.0.0.1", host)), ca=ca)) as source:
        if is_trusted:
            await source.refresh()
            assert await source.call("web__act", {}, a_context()) == '"done"'
        else:
            with pytest.raises(SourceUnreachable):
                await source.refresh()
            assert "certificate verify failed" in source.problem
            assert not server.headers, "no header is sent to it, and no secret in one"
