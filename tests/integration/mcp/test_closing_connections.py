"""A connection that is closed while a call that was given up still waits: what comes then is no defect."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from tests.mcp_servers import raw_http
from tests.mcp_servers.raw_http import raw_server
from tests.mcp_servers.sources import a_context, at, running

IDLE = timedelta(milliseconds=50)


async def test_a_call_that_breaks_while_its_connection_is_closed_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    began, closing = asyncio.Event(), asyncio.Event()

    async def breaks(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        began.set()
        await closing.wait()
        return await raw_http.dropped(request, message)

    async def never_answered(method: str) -> None:
        if method == "DELETE":
            closing.set()
            await asyncio.get_running_loop().create_future()

    async with raw_server() as server, running(replace(at(server.url), idle=IDLE)) as source:
        server.answer, server.closing = breaks, never_answered
        await source.refresh()
        call = asyncio.create_task(source.call("web__act", {}, a_context()))
        await began.wait()
        call.cancel()
        await closing.wait()
        server.answer, server.closing = raw_http.done, raw_http.at_once
        assert await source.call("web__act", {}, a_context()) == '"done"'
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
