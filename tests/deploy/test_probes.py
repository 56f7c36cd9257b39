"""What a kubelet does to a pod: probes at its own address, SIGTERM, and SIGKILL once its time is over.

Everything runs in a network namespace of its own, with an address that is not loopback, as a pod has one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.deploy import tools
from turnkeeper import dev_credentials
from turnkeeper.rpc.health import LIVENESS
from turnkeeper.rpc.server import SERVICES

ADDRESS: Final = "10.77.0.1"
"""The pod's: of the namespace alone."""
DRAIN: Final = {"--drain-delay": 2.0, "--drain-grace": 3.0}
GRACE: Final = sum(DRAIN.values()) + 10
"""Seconds from SIGTERM to SIGKILL."""
SERVING, UNHEALTHY = 0, 4
"""Exit statuses of grpc-health-probe; others: it got no answer."""
BIN: Final = Path(sys.executable).parent
STORY: Final = "A long story that no call waits for. " * 6
SCRIPT: Final = f"""
[[reply]]
text = "{STORY}"
chunk = 4
delay = "150ms"
"""
DATABASE: Final = """
import asyncio, sys
from pathlib import Path
from turnkeeper.store.embedded import EmbeddedMongo

async def main():
    async with EmbeddedMongo(Path(sys.argv[1])) as uri:
        print(uri, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(slots=True)
class Pods:
    """The namespace, its database and its model; starts servers, and asks them."""

    folder: Path
    inside: Sequence[str]
    """Begins the command of a program that runs in the namespace."""
    stack: contextlib.ExitStack
    database: str = ""
    model: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    """Of the servers' API, by their names; that of their health is the next one."""

    def start(self, *command: str, **variables: str) -> tuple[subprocess.Popen[str], str]:
        """Starts a program, and kills it at the end of the test. Returns it with its first line of output."""
        process = subprocess.Popen(
            [*self.inside, *command], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
        )
        self.stack.callback(_end, process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def serve(self, name: str) -> subprocess.Popen[str]:
        """Starts a server that asks its callers for certificates."""
        port = self.ports[name] = 50051 + 10 * len(self.ports)
        files = {
            "--principals": "principals.toml",
            "--tls-certificate": "server.pem",
            "--tls-key": "server-key.pem",
            "--tls-client-ca": "ca.pem",
        }
        flags: dict[str, object] = {
            **{flag: self.folder / file for flag, file in files.items()},
            **{flag: f"{seconds:g}s" for flag, seconds in DRAIN.items()},
            "--host": ADDRESS,
            "--port": port,
            "--health-port": port + 1,
            "--replica": name,
            "--identity": "mtls",
            "--lease": "3s",
            "--sweep": "500ms",
        }
        command = [str(part) for pair in flags.items() for part in pair]
        server, line = self.start(
            str(BIN / "turnkeeper"),
            *("serve", *command),
            MONGODB_URI=self.database,
            OPENAI_BASE_URL=self.model,
            OPENAI_API_KEY="unused",
        )
        assert line == f"turnkeeper: serving on {ADDRESS}:{port}"
        return server

    def probe(self, name: str, *flags: str, health: bool = True) -> int:
        """Returns the exit status of grpc-health-probe at a server's health port, or at that of its API."""
        at = f"-addr={ADDRESS}:{self.ports[name] + health}"
        command = [*self.inside, str(tools.health_probe()), at, "-connect-timeout=2s", "-rpc-timeout=2s", *flags]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def call(self, name: str, method: str, **request: object) -> Any:
        """Calls the server's API as the principal ada."""
        files = {"-cacert": "ca.pem", "-cert": "ada.pem", "-key": "ada-key.pem"}
        flags = [part for flag, file in files.items() for part in (flag, str(self.folder / file))]
        at = f"{ADDRESS}:{self.ports[name]}"
        answer = tools.run(
            *self.inside, BIN / "grpcurl", *flags, "-d", json.dumps(request), at, f"turnkeeper.v1.{method}"
        )
        return json.loads(answer)

    def begin(self, name: str, session: str) -> str:
        """Sends a message whose answer takes its time. Returns the turn's id once this server runs it."""
        content = {"content": [{"text": "a story"}], "create_session": {"agent": "assistant"}, "wait": "0s"}
        sent = self.call(name, "ChatService/SendMessage", session_id=session, request_id=session, **content)
        return str(sent["turn"]["turn_id"])

    def answer(self, name: str, session: str, turn: str) -> str:
        """Waits for the turn's end, and returns its answer."""
        got = self.call(name, "ChatService/GetTurn", session_id=session, turn_id=turn, wait="60s")
        return "".join(part["text"] for part in got["turn"]["answer"])


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """Makes the namespace, and starts a database and a model in it."""
    folder = tmp_path_factory.mktemp("pods")
    dev_credentials.write(folder, {"ada": ["caller"]}, hosts=[ADDRESS], lifetime=timedelta(days=1))
    (folder / "script.toml").write_text(SCRIPT)
    up = f"ip link set lo up && ip addr add {ADDRESS}/32 dev lo && echo up && exec sleep 3600"
    with contextlib.ExitStack() as stack:
        unshare, _ = tools.need("unshare", "install util-linux"), tools.need("ip", "install iproute2")
        holder = subprocess.Popen([unshare, "-n", "sh", "-c", up], stdout=subprocess.PIPE, text=True)
        stack.callback(_end, holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n", "it takes root"
        pods = Pods(folder, [tools.need("nsenter", "install util-linux"), "-t", str(holder.pid), "-n"], stack)
        (folder / "database").mkdir()
        _, pods.database = pods.start(sys.executable, "-c", DATABASE, str(folder / "database"))
        model = ("model", "scripted", "--script", str(folder / "script.toml"))
        _, line = pods.start(str(BIN / "turnkeeper"), *model)
        pods.model = line.rpartition(" ")[2]
        yield pods


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    """Tries again and again: a probe notices changes by asking, too."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end


def test_a_kubelet_sees_every_name_and_ends_pods_without_a_lost_turn(pods: Pods) -> None:
    first = pods.serve("first")
    for name in ("", *SERVICES, LIVENESS):
        assert pods.probe("first", f"-service={name}") == SERVING, name
    assert pods.probe("first", health=False) not in (SERVING, UNHEALTHY), "the API asks for a certificate"
    own = [f"-tls-{flag}={pods.folder / file}" for flag, file in (("ca-cert", "ca.pem"), ("client-cert", "ada.pem"))]
    key = f"-tls-client-key={pods.folder / 'ada-key.pem'}"
    assert pods.probe("first", "-tls", *own, key, health=False) == SERVING

    second = pods.serve("second")
    turn = pods.begin("first", "handed-over")
    began = time.monotonic()
    first.send_signal(signal.SIGTERM)
    until(lambda: pods.probe("first") == UNHEALTHY, seconds=DRAIN["--drain-delay"] + 5)
    assert pods.probe("first", f"-service={LIVENESS}") == SERVING, "a pod that drains is not restarted"
    assert first.wait(timeout=GRACE) == 0
    assert time.monotonic() - began < GRACE
    assert pods.answer("second", "handed-over", turn) == STORY

    pods.serve("third")
    turn = pods.begin("second", "taken-over")
    second.send_signal(signal.SIGSTOP)
    until(lambda: pods.probe("second", f"-service={LIVENESS}") not in (SERVING, UNHEALTHY))
    second.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=3)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    assert pods.answer("third", "taken-over", turn) == STORY
