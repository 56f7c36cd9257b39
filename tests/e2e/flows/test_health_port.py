"""Probes bring no certificate: the health port answers them while the port of the API asks for one."""

import asyncio
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from turnkeeper import app, dev_credentials
from turnkeeper.child_processes import free_port
from turnkeeper.health_command import NO_ANSWER, NOT_SERVING, PORT, SERVING, WRONG, address_of
from turnkeeper.pb.v1 import agent_pb2
from turnkeeper.rpc.health import LIVENESS
from turnkeeper.rpc.server import SERVICES
from turnkeeper.settings import Settings
from turnkeeper.start_errors import PortTaken

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = '[[reply]]\ntext = "Yes."'
ALL = ("", *SERVICES, LIVENESS)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    dev_credentials.write(folder, {"ada": ["caller"]}, hosts=["127.0.0.1"], lifetime=timedelta(days=1))
    return folder


def mtls(folder: Path) -> dict[str, Any]:
    return {
        "identity": "mtls",
        "principals": folder / "principals.toml",
        "tls_certificate": folder / "server.pem",
        "tls_key": folder / "server-key.pem",
        "tls_client_ca": folder / "ca.pem",
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(mongo_uri: str, module_database: str, credentials: Path) -> AsyncIterator[app.Running]:
    """Starts a server whose API asks for certificates, with a health port and metrics."""
    settings = {**mtls(credentials), "exporter": "prometheus", "prometheus_port": 0, "prometheus_host": "127.0.0.2"}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, health_port=0, **settings) as running,
    ):
        yield running


@asynccontextmanager
async def plain(address: str) -> AsyncIterator[Any]:
    async with aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def test_it_knows_every_name_while_the_api_asks_for_a_certificate(running: app.Running) -> None:
    async with plain(running.health_address) as health:
        for name in ALL:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
        with pytest.raises(aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="turnkeeper.v1.NoService"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    async with plain(running.address) as health:
        with pytest.raises(aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_it_serves_nothing_else(running: app.Running) -> None:
    async with aio.insecure_channel(running.health_address) as channel:
        with pytest.raises(aio.AioRpcError) as refused:
            await harness.Stubs(channel).agents.ListAgents(agent_pb2.ListAgentsRequest())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def health(*flags: str, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs `turnkeeper health`. Returns its exit status, and what it wrote."""
    command = [str(Path(sys.executable).with_name("turnkeeper")), "health", "--timeout", "10s", *flags]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    run = await asyncio.to_thread(
        subprocess.run, command, env={**kept, **(variables or {})}, capture_output=True, text=True, timeout=60
    )
    return run.returncode, run.stdout + run.stderr


async def test_a_probe_that_runs_a_program(running: app.Running, credentials: Path) -> None:
    """By its exit status a container's runtime knows what to do."""
    port = running.health_address.rpartition(":")[2]
    by_variables = {"TURNKEEPER_HOST": "0.0.0.0", "TURNKEEPER_HEALTH_PORT": port, "HTTP_PROXY": "http://127.0.0.1:1"}
    assert await health("--service", LIVENESS, variables=by_variables) == (SERVING, "SERVING\n")
    assert await health("--service", "none", "--address", running.health_address) == (
        WRONG,
        f"turnkeeper health: {running.health_address} has no service 'none'\n",
    )
    status, output = await health("--address", running.address)
    assert status == NO_ANSWER
    assert "if it expects TLS, pass --tls-ca" in output
    files = {"--tls-ca": "ca.pem", "--tls-certificate": "ada.pem", "--tls-key": "ada-key.pem"}
    by_tls = [part for flag, name in files.items() for part in (flag, str(credentials / name))]
    assert await health("--address", running.address, *by_tls) == (SERVING, "SERVING\n")
    status, output = await health("--tls-ca", "/nowhere.pem")
    assert (status, output) == (WRONG, "turnkeeper health: /nowhere.pem cannot be read: No such file or directory\n")
    status, output = await health("--tls-ca", *by_tls[1:4])
    assert (status, output) == (WRONG, "turnkeeper health: --tls-certificate and --tls-key need each other\n")


async def test_a_probe_of_a_server_that_drains(
    mongo_uri: str, module_database: str, credentials: Path, tmp_path: Path
) -> None:
    """Liveness stays SERVING; the API listens on a Unix socket here, and the health port on loopback then."""
    socket_path = f"unix:{tmp_path / 'api'}"
    port = free_port()
    variables = {"TURNKEEPER_HOST": socket_path, "TURNKEEPER_HEALTH_PORT": str(port)}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.server_process(
            mongo_uri, module_database, model, flags=("--drain-delay", "10m"), variables=variables
        ) as server,
    ):
        assert await health(variables={"TURNKEEPER_HOST": socket_path}) == (SERVING, "SERVING\n")
        assert await health(variables=variables) == (SERVING, "SERVING\n")
        server.process.terminate()
        async with plain(f"127.0.0.1:{port}") as stub, asyncio.timeout(20):
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
        assert await health(variables=variables) == (NOT_SERVING, "NOT_SERVING\n")
        assert await health("--service", LIVENESS, variables=variables) == (SERVING, "SERVING\n")


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, f"127.0.0.1:{PORT}"),
        ({"HOST": "::", "PORT": "1"}, "[::1]:1"),
        ({"HOST": "10.0.0.1", "HEALTH_PORT": "2"}, "10.0.0.1:2"),
        ({"HOST": "10.0.0.1", "HEALTH_HOST": "fd00::1", "HEALTH_PORT": "2"}, "[fd00::1]:2"),
        ({"HOST": "unix:/api", "HEALTH_PORT": "2"}, "127.0.0.1:2"),
        ({"HOST": "unix:/api"}, "unix:/api"),
    ],
)
async def test_a_probe_asks_where_the_variables_of_the_server_are(variables: dict[str, str], address: str) -> None:
    assert address_of({f"TURNKEEPER_{name}": value for name, value in variables.items()}) == address
    assert int(PORT) == Settings().port


async def test_metrics_are_served_on_the_chosen_address(
    running: app.Running, caplog: pytest.LogCaptureFixture, mongo_uri: str, module_database: str
) -> None:
    caplog.set_level("INFO")
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            *(mongo_uri, module_database, model),
            exporter="prometheus",
            prometheus_port=0,
            prometheus_host="::1",
            health_port=0,
        ),
    ):
        (line,) = (record.getMessage() for record in caplog.records if "metrics are served" in record.getMessage())
        url = line.rpartition(" ")[2]
        assert url.startswith("http://[::1]:")
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
        assert b"turnkeeper_turns_active" in page


async def test_a_taken_health_port_is_named_with_its_own_settings(
    running: app.Running, mongo_uri: str, module_database: str
) -> None:
    port = int(running.health_address.rpartition(":")[2])
    with pytest.raises(PortTaken, match="Stop that one, or choose another --health-port"):
        async with harness.serving(mongo_uri, module_database, "http://127.0.0.1:1", health_port=port):
            pass
