"""The start of a server, before it serves."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from turnkeeper.start_errors import PortTaken

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""


async def test_a_second_server_on_the_port_fails_and_the_first_serves_on(env: Environment) -> None:
    """By default gRPC shares a port between servers, and each gets some of the calls."""
    port = int(env.address.rpartition(":")[2])
    with pytest.raises(PortTaken, match=f"127.0.0.1:{port} cannot be listened on"):
        async with harness.serving(env.mongo_uri, env.database, env.model, agents=AGENTS, port=port):
            pass
    session = await harness.create_test_session(env.stubs, agent="talker")
    turn = await harness.send_message_to_session(env.stubs, session, "hello")
    assert harness.answer_of(turn) == "You said: hello"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
async def test_an_address_that_others_can_reach_is_refused(env: Environment, host: str) -> None:
    with pytest.raises(ValidationError, match="must be a loopback address"):
        async with harness.serving(env.mongo_uri, env.database, env.model, host=host):
            pass


@pytest.mark.parametrize(("processes", "names"), [(1, ["shop"]), (2, ["shop-1", "shop-2"])])
async def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(
    env: Environment, tmp_path: Path, processes: int, names: Sequence[str]
) -> None:
    """Also in each of several processes, which do not read the file again."""
    file = tmp_path / "turnkeeper.toml"
    file.write_text(
        f"""\
processes = {processes}       # over the default, as are the next three
port = 0
log_format = "json"
drain_delay = "0s"
log_level = "ERROR"          # the variable wins
replica = "file"             # the variable wins, and the flag over it
"""
    )
    variables = {
        "TURNKEEPER_MONGODB_URI": env.mongo_uri,
        "TURNKEEPER_DATABASE": env.database,
        "TURNKEEPER_LOG_LEVEL": "INFO",
        "TURNKEEPER_REPLICA": "variable",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--config", str(file), "--replica", "shop"),
        env=harness.environment(env.model, **variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(50):
        address = (await process.stdout.readline()).decode().removeprefix("turnkeeper: serving on ").strip()
        file.unlink()
        process.terminate()
        _, log = await process.communicate()
    assert process.returncode == 0
    assert not address.endswith(":50051")
    lines = [json.loads(line) for line in log.decode().splitlines()]
    assert sorted(line["replica"] for line in lines if line["message"].startswith("draining")) == names
