"""The running parts of a run: a database, a model, three replicas, and Envoy in front of them."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from pymongo import AsyncMongoClient

from tests.calls import Issuer
from tests.chaos import tenants, tools
from tests.chaos.programs import Program
from tests.chaos.reading import PROMPTS
from tests.chaos.servers import environment
from tests.demo.ports import free_port
from tests.e2e.support.key_server import KeyServer, key_server
from tests.mesh import load, shipped_files
from tests.mesh.certificates import CA, CERTIFICATE, KEY, Certificates
from tests.mesh.envoy import Envoy
from tests.mesh.replicas import Ports, Replica
from tests.mesh.script import FILES
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.store.embedded import EmbeddedMongo

DATABASE: Final = "mesh"
ORIGIN: Final = "https://app.example.org"
REPLICA_ID: Final = "spiffe://example.org/ns/turnkeeper/sa/turnkeeper"
PROXY_ID: Final = "spiffe://example.org/ns/edge/sa/envoy"
CALLERS_TLS: Final = "callers-tls"
REPLICAS_TLS: Final = "replicas-tls"
HOST: Final = "127.0.0.1"
STREAM_IDLE: Final = 32
"""Seconds after which Envoy ends a stream without a byte: shortened, and still twice the service's heartbeat."""
LIMITED: Final = "ListAgents"
"""A method of which a principal may make one call a minute."""
_LIMITS: Final = f"""
profile = "mesh"

[profiles.mesh.principal]
creates = "unlimited"
SendMessage = "unlimited"
StreamMessage = "unlimited"
messages = "unlimited"
reads = "unlimited"
{LIMITED} = {{ per_minute = 1, burst = 1 }}
"""


@dataclass(frozen=True, slots=True)
class Open:
    """What is open at a replica: streams as it counts them, and the other calls that Envoy has there."""

    streams: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The running parts. `values`: those of the documented variables of Envoy's files."""

    folder: Path
    database: EmbeddedMongo
    mongo: AsyncMongoClient[dict[str, Any]]
    certificates: Certificates
    replicas: Sequence[Replica]
    envoy: Envoy
    keys: KeyServer
    values: Mapping[str, str]

    @property
    def ca(self) -> Path:
        """The file of the CA of all certificates."""
        return self.certificates.folder(CALLERS_TLS) / CA

    @property
    def identity(self) -> Path:
        """The folder of the callers' tokens."""
        return self.folder / tenants.FOLDER

    def caller(self, tenant: str, principal: str = tenants.USER) -> tenants.Identity:
        return tenants.identity(self.identity, tenant, principal)

    def peer_credentials(self) -> grpc.ChannelCredentials:
        """Returns Envoy's own credentials at the replicas."""
        ca, certificate, key = (
            (self.certificates.folder(REPLICAS_TLS) / name).read_bytes() for name in (CA, CERTIFICATE, KEY)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)

    async def open_at(self, replica: Replica) -> Open:
        """Returns what is open at the replica now."""
        hosts, streams = await asyncio.gather(self.envoy.hosts(), replica.streams())
        return Open(streams, max(0, hosts[replica.address].active - streams))


@dataclass(slots=True)
class _WrittenKey(Issuer):
    """The issuer of the callers' tokens, whose key is in a file."""

    file: Path = Path()

    def jwk(self) -> dict[str, Any]:
        key: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))["keys"][0]
        return key


@contextlib.asynccontextmanager
async def running(folder: Path, *, files: Path) -> AsyncIterator[Stage]:
    """Starts the parts, with Envoy's files from `files`, and stops all of them at the end of the block.

    Raises NoEnvoy, RuntimeError or EmbeddedDatabaseError if one does not start.
    """
    certificates = Certificates(folder / "certificates")
    certificates.issue(CALLERS_TLS, hosts=[HOST, "localhost"])
    certificates.issue(REPLICAS_TLS, spiffe_id=PROXY_ID)
    tenants.write(folder / tenants.FOLDER)
    (folder / "limits.toml").write_text(_LIMITS, encoding="utf-8")
    async with contextlib.AsyncExitStack() as stack:
        database = EmbeddedMongo(folder / "database")
        uri = await stack.enter_async_context(database)
        mongo = await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](uri))
        keys = await stack.enter_async_context(key_server(_WrittenKey(file=folder / tenants.FOLDER / tenants.KEYS)))
        variables = {
            **tools.variables(folder, "tests.mesh.tools"),
            "TURNKEEPER_MONGODB_URI": uri,
            "OPENAI_BASE_URL": await _model(folder, stack),
            "OPENAI_API_KEY": "unused",
        }
        replicas = [_replica(number, folder, certificates, keys, variables) for number in range(3)]
        for replica in replicas:
            stack.push_async_callback(replica.program.kill_if_running)
        await asyncio.gather(*(replica.start() for replica in replicas))
        values = _values(certificates, replicas, sds=folder / "envoy" / "sds")
        envoy = Envoy(
            shipped_files.write(files, values, to=folder / "envoy"),
            address=f"{HOST}:{values['LISTEN_PORT']}",
            admin=f"{HOST}:{values['ADMIN_PORT']}",
            log=folder / "envoy.log",
        )
        stack.push_async_callback(envoy.program.kill_if_running)
        await envoy.start()
        for replica in replicas:
            await envoy.until_in(replica.address)
        yield Stage(
            folder=folder,
            database=database,
            mongo=mongo,
            certificates=certificates,
            replicas=replicas,
            envoy=envoy,
            keys=keys,
            values=values,
        )


@contextlib.asynccontextmanager
async def loaded(stage: Stage, *, seed: int) -> AsyncIterator[Program]:
    """Runs the callers, until their program is told to end; kills it at the end of the block if it still runs."""
    words = load.words(stage.envoy.address, ca=stage.ca, identity=stage.identity, seed=seed, out=stage.folder)
    program = Program("callers", [sys.executable, *words], log=stage.folder / "callers.log", environ=environment())
    program.start()
    try:
        yield program
    finally:
        await program.kill_if_running()


async def _model(folder: Path, stack: contextlib.AsyncExitStack) -> str:
    """Starts the model. Returns its base URL."""
    command = [sys.executable, "-m", "turnkeeper", "model", "scripted", "--script", str(FILES / "model.toml")]
    record = ["--record", str(folder / PROMPTS)]
    model = Program("model", [*command, *record], log=folder / "model.log", environ=environment())
    stack.push_async_callback(model.kill_if_running)
    model.start()
    return (await model.until_line("scripted model:")).rpartition(" ")[2].strip()


def _replica(
    number: int, folder: Path, certificates: Certificates, keys: KeyServer, variables: Mapping[str, str]
) -> Replica:
    name = f"replica-{number + 1}"
    renew(certificates, name)
    tls = certificates.folder(name)
    flags = [
        *("--tls-certificate", tls / CERTIFICATE, "--tls-key", tls / KEY, "--tls-client-ca", tls / CA),
        *("--identity", "mtls+jwt", "--trusted-peers", PROXY_ID, "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE),
        *("--jwt-keys", keys.url, "--principals", folder / tenants.FOLDER / tenants.ROWS),
        *("--limits", folder / "limits.toml", "--agents", FILES / "agents.toml", "--database", DATABASE),
    ]
    ports = Ports(host=HOST, api=free_port(), health=free_port(), metrics=free_port())
    return Replica(name, ports, flags=list(map(str, flags)), variables=variables, log=folder / f"{name}.log")


def renew(certificates: Certificates, replica: str) -> None:
    """Gives a replica a new certificate."""
    certificates.issue(replica, hosts=[HOST], spiffe_id=REPLICA_ID)


def _values(certificates: Certificates, replicas: Sequence[Replica], *, sds: Path) -> Mapping[str, str]:
    """Returns the values of the documented variables of Envoy's files."""
    of_replicas = {
        f"REPLICA_{number}_{name}": value
        for number, replica in enumerate(replicas, 1)
        for name, value in (
            ("ADDRESS", replica.ports.host),
            ("PORT", str(replica.ports.api)),
            ("HEALTH_PORT", str(replica.ports.health)),
        )
    }
    return {
        **of_replicas,
        "LISTEN_ADDRESS": HOST,
        "LISTEN_PORT": str(free_port()),
        "ADMIN_PORT": str(free_port()),
        "SDS": str(sds),
        "CALLERS_TLS": str(certificates.folder(CALLERS_TLS)),
        "REPLICAS_TLS": str(certificates.folder(REPLICAS_TLS)),
        "REPLICA_SPIFFE_ID": REPLICA_ID,
        "CORS_ORIGIN": ORIGIN,
        "STREAM_IDLE_TIMEOUT": f"{STREAM_IDLE}s",
    }
