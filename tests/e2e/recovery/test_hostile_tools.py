"""Whatever a tool raises or prints, its server goes on: a real process is looked at a second after the last of them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.hostile_tools import RAISED, SEAMS, SECRET, SERVING
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILED, OK, TIMED_OUT = event_pb2.TOOL_OUTCOME_FAILED, event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_TIMED_OUT
AGENTS = """
[[agent]]
name = "host"
tools = ["*"]
[agent.limits]
tool_timeout = "2s"
parallel_tools = 8
max_iterations = 3
"""
ALONE = ("exit_in_a_task", "die_in_a_thread", "swallow_cancellations", "print_the_line", "close_the_streams")
"""Tools without arguments."""
SCRIPT = "\n".join(
    [
        *(
            f"""
[[reply]]
match = '^{name} (?P<how>\\w+)$'
after_tools = 0
tool_calls = [{{ name = "{name}", arguments = {{ how = "{{how}}" }} }}]"""
            for name in SEAMS
        ),
        *(
            f"""
[[reply]]
match = '^{name}$'
after_tools = 0
tool_calls = [{{ name = "{name}" }}]"""
            for name in ALONE
        ),
        '[[reply]]\ntext = "Told: {tool_result}"',
    ]
)


class Host:
    """A server process with the hostile tools."""

    def __init__(self, server: harness.ServerProcess, stubs: harness.Stubs, log: Path) -> None:
        self.server = server
        self.stubs = stubs
        self._log = log

    async def outcome_of(self, message: str) -> tuple[event_pb2.ToolOutcome.ValueType, str]:
        """Sends the message, whose turn completes. Returns what its one call returned."""
        session = await harness.create_test_session(self.stubs, agent="host")
        turn = await harness.send_message_to_session(self.stubs, session, message, wait=20)
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED, turn
        events = await harness.all_events(self.stubs, session)
        (returned,) = [event.tool_returned for event in events if event.HasField("tool_returned")]
        return returned.outcome, returned.result_json

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def text(self) -> str:
        return self._log.read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    folder = tmp_path_factory.mktemp("hostile")
    control = ToolControl(folder)
    control.install("tests.e2e.support.hostile_tools")
    (folder / "agents.toml").write_text(AGENTS)
    database = f"turnkeeper_test_hostile_{harness.new_request_id()[:8]}"
    with (folder / "log").open("w") as log:
        async with (
            harness.scripted(SCRIPT) as model,
            harness.server_process(
                *(mongo_uri, database, model),
                flags=("--agents", str(folder / "agents.toml")),
                variables=control.variables,
                stderr=log.fileno(),
            ) as server,
            harness.connect(server.address) as stubs,
        ):
            yield Host(server, stubs, folder / "log")


async def test_b1_whatever_tools_raise_their_server_is_there_a_second_later(host: Host) -> None:
    raised = await asyncio.gather(*(host.outcome_of(f"{seam} {how}") for seam in SEAMS for how in RAISED))
    assert {outcome for outcome, _ in raised} == {FAILED}
    assert not [result for _, result in raised if SECRET in result]
    outcome, result = await host.outcome_of("exit_in_a_task")
    assert (outcome, json.loads(result)) == (FAILED, {"error": "The tool failed (SystemExit)."})
    assert await host.outcome_of("die_in_a_thread") == (OK, '"the thread has ended"')
    outcome, _ = await host.outcome_of("swallow_cancellations")
    assert outcome == TIMED_OUT
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(host.server.process.wait(), timeout=1)
    assert await host.outcome_of("print_the_line") == (OK, '"printed"')


async def test_e4_each_is_logged_with_its_type_and_its_frames_and_nowhere_with_its_text(host: Host) -> None:
    await host.outcome_of("in_thread Panic")
    lines = [line for line in host.log() if line["message"].startswith("tool in_thread raised Panic (")]
    assert lines
    assert {line["level"] for line in lines} == {"WARNING"}
    assert "tests.e2e.support.hostile_tools:" in lines[0]["message"]
    assert " in_thread > " in lines[0]["message"]
    assert {"session", "turn"} <= lines[0].keys()
    assert SECRET not in host.text()
    assert "Traceback" not in host.text()


async def test_b1_what_a_tool_prints_is_not_the_products_line(host: Host) -> None:
    assert await host.outcome_of("print_the_line") == (OK, '"printed"')
    assert host.text().splitlines().count(SERVING) >= 3, "it goes to standard error"
    assert await host.outcome_of("close_the_streams") == (OK, '"closed"')
    await host.outcome_of("in_loop Panic")
    assert host.log()[-1]["message"].startswith("tool in_loop raised Panic ("), "the log goes on"
    assert await host.server.terminate() == 0
    assert host.server.process.stdout is not None
    assert await host.server.process.stdout.read() == b"", "the line that named the address was the only one"


async def test_b1_a_package_that_exits_while_it_is_loaded_is_a_start_error(tmp_path: Path, mongo_uri: str) -> None:
    control = ToolControl(tmp_path)
    control.install("exits")
    (tmp_path / "exits.py").write_text("import sys\nprint('turnkeeper: serving on 127.0.0.1:1')\nsys.exit(0)\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--port", "0", "--mongodb-uri", mongo_uri),
        env=harness.environment("http://127.0.0.1:1/v1", **control.variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), timeout=30)
    assert (process.returncode, output) == (2, b"")
    assert b"The tools of entry point test_tools (exits) cannot be loaded: 0" in errors
