"""The log of a server."""

import asyncio
import json
import re
import sys

from tests import harness


async def test_every_line_names_the_replica_and_none_a_key(mongo_uri: str, database_name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--port", "0", "--drain-delay", "0s"),
        env=harness.environment(
            "http://127.0.0.1:1/v1",
            OPENAI_API_KEY="a-key-that-nobody-must-see",
            MONGODB_URI=mongo_uri,
            TURNKEEPER_DATABASE=database_name,
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert b"serving on" in await process.stdout.readline()
        process.terminate()
        _, output = await process.communicate()
    lines = [json.loads(line) for line in output.decode().splitlines()]
    assert lines[-1]["message"] == "drained: the process ends"
    (replica,) = {line["replica"] for line in lines}
    assert re.fullmatch(rf"replica-{process.pid}-[0-9a-f]{{6}}", replica)
    assert b"nobody-must-see" not in output
