"""The log of a server."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from grpc import aio

from tests import harness
from tests.fail_points import Client, fail_point
from turnkeeper.pb.v1 import session_pb2

REQUEST_ID: Final = "order-4711"
TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
NAMES: Final = (("x-request-id", REQUEST_ID), ("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"))


@asynccontextmanager
async def not_authorized(mongo_uri: str) -> AsyncIterator[None]:
    """Lets the database refuse the reads of servers."""
    async with Client(mongo_uri) as client, fail_point(client, "find", "aggregate", errorCode=13):
        yield


async def test_every_line_names_the_replica_and_none_a_key(mongo_uri: str, database_name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--port", "0", "--drain-delay", "0s"),
        env=harness.environment(
            "http://127.0.0.1:1/v1",
            OPENAI_API_KEY="a-key-that-no-log-has",
            MONGODB_URI=mongo_uri,
            TURNKEEPER_DATABASE=database_name,
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        address = (await process.stdout.readline()).decode().removeprefix("turnkeeper: serving on ").strip()
        async with harness.connect(address) as stubs, not_authorized(mongo_uri):
            with pytest.raises(aio.AioRpcError):
                await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="any"), metadata=NAMES)
        process.terminate()
        _, output = await process.communicate()
    lines = [json.loads(line) for line in output.decode().splitlines()]
    (of_call,) = [line for line in lines if "x_request_id" in line]
    assert of_call["message"].startswith("the database refused ")
    assert (of_call["x_request_id"], of_call["trace_id"]) == (REQUEST_ID, TRACE_ID)
    assert of_call["principal"] == "default"
    assert lines[-1]["message"] == "drained: the process ends"
    (replica,) = {line["replica"] for line in lines}
    assert re.fullmatch(rf"replica-{process.pid}-[0-9a-f]{{6}}", replica)
    assert b"no-log-has" not in output
