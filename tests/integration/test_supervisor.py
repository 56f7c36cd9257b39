"""The supervisor's own rules, with programs in place of the servers that it starts."""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.processes import until
from turnkeeper import settings
from turnkeeper.database_state import DatabaseState
from turnkeeper.settings import Settings
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.start_errors import PortTaken
from turnkeeper.supervision import supervisor
from turnkeeper.supervision.options import SupervisorOptions
from turnkeeper.supervision.parent_link import database_line

PYTHON = sys.executable
URI = "mongodb://ada:a-password@127.0.0.1:1/"
SERVE = r"line.sendall(b'serving\n'); "
UNTIL_ASKED = SERVE + "line.recv(1); "
PROGRAM = """#!{python} -IS
import os, pathlib, socket, sys
name = next(word.removeprefix("--replica=") for word in sys.argv if word.startswith("--replica="))
line = socket.socket(fileno=int(sys.argv[sys.argv.index("--lifeline") + 1]))
exec(os.environ["PLAYS"])
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in place of Python: the variable PLAYS has a replica's code, which may use `name` and `line`."""
    file = tmp_path / "program"
    file.write_text(PROGRAM.format(python=sys.executable))
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.04)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns the messages that the supervisor has logged so far."""
    caplog.set_level(logging.INFO, "turnkeeper.supervision.supervisor")
    return lambda: [record.message for record in caplog.records if record.name == "turnkeeper.supervision.supervisor"]


def chosen(**more: object) -> Settings:
    return Settings(processes=2, port=0, mongodb_uri=URI, replica="pod", **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def serving(plays: str, configured: Settings | None = None, **environ: str) -> AsyncIterator[None]:
    """Supervises the processes during the block, which has 20 s."""
    variables = settings.environment(configured or chosen(), {"PLAYS": plays, **environ})
    options = SupervisorOptions.from_environment(variables)
    async with asyncio.timeout(20), supervisor.serving(options, variables, ShutdownRequest()):
        yield


async def serve(plays: str, configured: Settings | None = None, **environ: str) -> None:
    """Starts the processes, and drains them at once."""
    async with serving(plays, configured, **environ):
        pass


async def test_the_start_fails_with_the_reason_of_a_replica_that_cannot_start() -> None:
    with pytest.raises(supervisor.ReplicaFailed, match=r"^it rains$"):
        await serve("line.sendall(b'it rains'); sys.exit(2)")


@pytest.mark.parametrize(
    ("plays", "how"),
    [
        ("sys.exit(7)", "ended with status 7"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
    ],
)
async def test_a_replica_that_reports_nothing_is_named_with_its_status(plays: str, how: str) -> None:
    with pytest.raises(supervisor.ReplicaFailed, match=f"^pod-[12] {how} before it served$"):
        await serve(plays)


async def test_replicas_that_serve_are_drained_when_another_cannot_start(tmp_path: Path) -> None:
    """A replica that serves may run turns, so it is not killed."""
    up = "up = pathlib.Path(os.environ['UP']); "
    first = SERVE + "up.touch(); line.recv(1); up.write_text('drained')"
    second = "\n while not up.exists(): pass\n line.sendall(b'no room'); sys.exit(2)"
    with pytest.raises(supervisor.ReplicaFailed, match="no room"):
        await serve(f"{up}\nif name == 'pod-1': {first}\nelse: {second}", UP=str(tmp_path / "up"))
    assert (tmp_path / "up").read_text() == "drained"


async def test_a_replica_that_ends_is_started_again_after_growing_pauses(logged: Callable[[], list[str]]) -> None:
    plays = f"if name == 'pod-1': {SERVE}\nelse: {UNTIL_ASKED}"
    async with serving(plays):
        await until(lambda: len(logged()) >= 8, timeout=60)
    again = [f"pod-1 ended with status 0; it is started again in {pause} s" for pause in (0.01, 0.02, 0.04, 0.04)]
    assert [line for line in logged()[:8] if "again in" in line] == again
    assert logged()[1] == "pod-1 serves again"


async def test_a_replica_that_fails_to_start_again_is_tried_again(
    tmp_path: Path, logged: Callable[[], list[str]]
) -> None:
    """The database may be unavailable for a while."""
    plays = f"""
tries = pathlib.Path({str(tmp_path / "tries")!r} + name)
count = tries.exists() and len(tries.read_text())
tries.write_text('x' * (count + 1))
if name == 'pod-2' or count > 1: {UNTIL_ASKED}
elif count: line.sendall(b'no database answers'); sys.exit(2)
else: {SERVE} sys.exit(1)
"""
    async with serving(plays):
        await until(lambda: "pod-1 serves again" in logged(), timeout=60)
    assert "pod-1: no database answers" in logged()


async def test_a_replica_that_ends_with_a_state_of_the_database_unread_ends_no_other() -> None:
    """The private database ended while the replica was started again."""
    plays = "import select; select.select([line], [], []); line.sendall(b'no database answers'); sys.exit(2)"
    replica = supervisor._ReplicaProcess("pod-1", {"PLAYS": plays})  # noqa: SLF001 - no state comes at a set time
    starting = asyncio.create_task(replica.start())
    async with asyncio.timeout(20):
        await until(lambda: replica._link is not None)  # noqa: SLF001
        replica.send(database_line(DatabaseState.DOWN))
        with pytest.raises(supervisor.ReplicaFailed, match="no database answers"):
            await starting
    await replica.drain(1)


async def test_a_replica_that_dies_in_the_drain_is_logged(logged: Callable[[], list[str]]) -> None:
    with pytest.raises(supervisor.NotDrained):
        await serve(f"{UNTIL_ASKED} name == 'pod-2' and os.kill(os.getpid(), 9)")
    assert logged() == ["pod-2 was ended by SIGKILL while it drained"]


async def test_a_frozen_replica_does_not_hold_the_drain_up(
    logged: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CLOSING_TIME", 0.3)
    frozen = chosen(drain_delay=timedelta(), drain_grace=timedelta(milliseconds=200))
    with pytest.raises(supervisor.NotDrained):
        await serve(f"{SERVE} name == 'pod-2' and os.kill(os.getpid(), 19); line.recv(1)", frozen)
    assert logged() == [
        "pod-2 has not drained within 0.5 s: it is killed",
        "pod-2 was ended by SIGKILL while it drained",
    ]


async def test_each_replica_has_its_own_name_and_metrics_and_no_secret_on_its_command_line(tmp_path: Path) -> None:
    note = f"pathlib.Path({str(tmp_path)!r}, name).write_text(json.dumps([sys.argv, dict(os.environ)])); "
    configured = chosen(prometheus_port=9464, concurrency=7)
    await serve(f"import json; {note} {UNTIL_ASKED}", configured, MONGODB_URI="mongodb://another", OTHER="kept")
    for number in (1, 2):
        argv, environ = json.loads((tmp_path / f"pod-{number}").read_text())
        assert argv[1:5] == ["-P", "-m", "turnkeeper", "serve"]
        assert "a-password" not in " ".join(argv)
        assert environ["TURNKEEPER_REPLICA"] == f"pod-{number}"
        assert environ["TURNKEEPER_PROMETHEUS_PORT"] == str(9463 + number)
        assert environ["TURNKEEPER_PROCESSES"] == "1"
        assert environ["TURNKEEPER_MONGODB_URI"] == URI
        assert environ["TURNKEEPER_CONCURRENCY"] == "7"
        assert environ["TURNKEEPER_PORT"] != "0"
        assert environ["OTHER"] == "kept"
        assert "MONGODB_URI" not in environ


async def test_a_metrics_port_of_0_stays_0() -> None:
    play = f"assert os.environ['TURNKEEPER_PROMETHEUS_PORT'] == '0'; {UNTIL_ASKED}"
    await serve(play, chosen(prometheus_port=0))


def test_no_other_process_can_listen_on_a_held_port() -> None:
    with supervisor.hold_port("127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"):
            _listen(port)
        with (
            pytest.raises(PortTaken, match=f"127.0.0.1:{port} cannot be listened on"),
            supervisor.hold_port("127.0.0.1", port),
        ):
            pass
        with closing(_listen(port, share=True)), closing(_listen(port, share=True)):
            pass
    _listen(port).close()


def test_a_port_that_another_process_listens_on_cannot_be_held() -> None:
    """Even if that process would share it."""
    for share in (False, True):
        with closing(_listen(0, share=share)) as other:
            port = other.getsockname()[1]
            with pytest.raises(PortTaken), supervisor.hold_port("127.0.0.1", port):
                pass


def test_lingering_connections_do_not_keep_a_port() -> None:
    """They belong to a server that was stopped a moment ago."""
    with ExitStack() as stack:
        before = stack.enter_context(closing(_listen(0)))
        port = before.getsockname()[1]
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        before.accept()[0].close()
        assert client.recv(1) == b""
    with supervisor.hold_port("127.0.0.1", port) as held:
        assert held == port
        _listen(port, share=True).close()


def test_a_host_name_is_held_at_each_of_its_addresses() -> None:
    with supervisor.hold_port("localhost", 0) as port, pytest.raises(OSError, match="in use"):
        _listen(port)


def _listen(port: int, *, share: bool = False) -> socket.socket:
    """Listens as a gRPC server does."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share))
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def test_a_supervisor_imports_no_part_of_a_server() -> None:
    program = "import sys, turnkeeper.supervision.program; print(*sys.modules)"
    loaded = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "turnkeeper.supervision.supervisor" in loaded
    assert not {"turnkeeper.app", "aiohttp", "grpc", "google.protobuf", "motor", "openai"} & set(loaded)
    assert not {"argparse", "pydantic", "pydantic_settings"} & set(loaded)
