"""The settings of `turnkeeper serve`: their types, limits and defaults. `settings_sources` reads them."""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from turnkeeper import durations, sizes
from turnkeeper.peer_list import PeerList
from turnkeeper.secret_variables import SUFFIX
from turnkeeper.setting_types import (
    LAST_PORT,
    LEAST_MEMORY,
    LOOPBACK,
    MEMORY_SHARE,
    TOGETHER,
    UNIX,
    Algorithms,
    DatabaseName,
    DeltaInterval,
    Duration,
    FilePath,
    Host,
    KeysPlace,
    Memory,
    OperationTime,
    Peers,
    Port,
    PositiveDuration,
    Processes,
    Switch,
    Text,
    Turns,
    is_local,
    is_plain_http,
)
from turnkeeper.sizes import Size

PREFIX: Final = "TURNKEEPER_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
RECHECK: Final = timedelta(minutes=1)
"""How often a call's caller is checked again: at its next response, which of a stream may be a keep-alive."""
PATIENCE_IN_LEASES: Final = 1.5
"""How long leases are renewed while the event loop is blocked, unless `loop_patience` is set."""
_WHY_OFTEN: Final = "at a keep-alive the caller of an idle stream is checked again"


class Settings(BaseModel):
    """The values of all settings. Raises pydantic's ValidationError, which shows no value, if one cannot be.

    Fields that may hold a password are not in the text of the object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: Host = Field(
        default=LOOPBACK,
        description="address to listen on, or unix:PATH; where callers are not checked, only this machine's",
    )
    port: Port = Field(default=50051, description="port to listen on; 0 takes a free one and prints it")
    processes: Processes = Field(default=1, description="server processes on that port, each a replica of its own")
    health_port: Port | None = Field(
        default=None,
        description="port for health checks alone, without TLS and credentials; none without it; 0 takes a free one",
    )
    health_host: Host | None = Field(
        default=None, description="address of that port; without it that of --host, or loopback if that is unix:PATH"
    )
    jwks_port: Port | None = Field(default=None, description="port of the keys that verify tool calls; none without it")
    identity: Literal["none", "mtls", "jwt", "mtls+jwt", "forwarded"] = Field(
        default="none", description="how callers are identified; none: each one is `default`"
    )
    principals: FilePath | None = Field(
        default=None, description="file of principals, TOML: whose credential it is, and what they may do; watched"
    )
    trust_network: Switch = Field(
        default=False, description="listen anywhere, though callers are not checked or tokens can be read on the way"
    )
    tls_certificate: FilePath | None = Field(
        default=None, description="file of the server's certificate and those up to its CA, PEM; watched"
    )
    tls_key: FilePath | None = Field(default=None, description="file of the certificate's key, PEM; watched")
    tls_client_ca: FilePath | None = Field(
        default=None, description="file of the CAs whose certificates callers must have, PEM; watched"
    )
    jwt_issuer: Text = Field(default="", description="`iss` that tokens must have")
    jwt_audience: Text = Field(default="", description="`aud` that tokens must have")
    jwt_keys: KeysPlace = Field(default="", description="file or URL of the issuer's JWK set", repr=False)
    jwt_algorithms: Algorithms = Field(
        default="ES256,RS256", description="algorithms that tokens may be signed with, with commas"
    )
    jwt_keys_age: PositiveDuration = Field(
        default=timedelta(minutes=5), description="how often the JWK set of a URL is fetched anew"
    )
    trusted_peers: Peers = Field(
        default="", description="proxies that may carry others' credentials: unix, networks, SPIFFE ids, with commas"
    )
    limits: FilePath | None = Field(
        default=None, description="file of limits, TOML: calls of principals and tenants; none without it; watched"
    )
    audit_key: FilePath | None = Field(
        default=None, description="file of an Ed25519 private key, PEM, that signs the seals of the audit trail"
    )
    mongodb_uri: Text = Field(default="", description="URI of your MongoDB replica set", repr=False)
    database: DatabaseName = Field(default="turnkeeper", description="name of the database")
    database_wait: Duration = Field(
        default=timedelta(seconds=60),
        description="how long a start waits for a database that does not answer",
    )
    embedded: Switch = Field(default=False, description="start a private MongoDB, a replica set of one")
    data_dir: FilePath = Field(default=Path(".turnkeeper"), description="folder for the data of the private MongoDB")
    agents: FilePath | None = Field(default=None, description="file of agents, TOML; without it there are two samples")
    tools: FilePath | None = Field(
        default=None, description="Python file of tools, beside those of installed packages; none without it"
    )
    catalogue: FilePath | None = Field(
        default=None, description="file of tool servers and of limits of tools, TOML; none without it"
    )
    model: Text = Field(default="", description="name of the model, for agents that name none")
    openai_base_url: Text = Field(
        default="", description="base URL of the model's server, any OpenAI-compatible one", repr=False
    )
    local_model: Switch = Field(default=False, description="start the small local model, unless another one is set")
    first_token: PositiveDuration = Field(
        default=timedelta(seconds=60), description="how long a model may take to its first token"
    )
    between_tokens: PositiveDuration = Field(
        default=timedelta(seconds=30), description="how long a model may pause between two tokens"
    )
    answer_time: PositiveDuration = Field(
        default=timedelta(minutes=10), description="how long a model's whole answer may take"
    )
    concurrency: Turns = Field(default=1024, description="turns that run at the same time on this replica")
    accept_wait: PositiveDuration = Field(
        default=timedelta(seconds=30),
        description="messages whose turns would begin later than this are refused as OVERLOADED",
    )
    calls_at_work: Turns = Field(
        default=2048, description="calls that work at the same time on this replica, at most; fewer under load"
    )
    memory: Memory | None = Field(
        default=None,
        description="memory that this replica uses at most; without it half of the machine's or its control group's, "
        "divided by --processes",
    )
    lease: PositiveDuration = Field(
        default=timedelta(seconds=7), description="how long a turn belongs to its owner after each renewal"
    )
    loop_patience: PositiveDuration | None = Field(
        default=None,
        description="how long leases are renewed while the process is blocked; a lease later its turns are lost; "
        "without it 1.5 leases",
    )
    outcome_patience: Duration = Field(
        default=timedelta(seconds=30),
        description="how long a missing result of a call that must not run twice is awaited or looked for",
    )
    sweep: PositiveDuration = Field(
        default=timedelta(seconds=1), description="how often lapsed leases and expired approvals are searched for"
    )
    poll: PositiveDuration = Field(
        default=timedelta(milliseconds=500), description="how often changes without a notification are searched for"
    )
    operation_time: OperationTime = Field(
        default=timedelta(seconds=5), description="how long one operation on the database may take"
    )
    keep_events: Duration = Field(
        default=timedelta(), description="how long events can be replayed to streams; 0s: always"
    )
    purge_after: PositiveDuration = Field(
        default=timedelta(days=30), description="time from DeleteSession to the removal of the session's data"
    )
    heartbeat: PositiveDuration = Field(
        default=timedelta(seconds=15),
        description="silence on a stream after which a keep-alive is sent; at most 60s with an --identity",
    )
    delta_interval: DeltaInterval = Field(
        default=timedelta(milliseconds=40),
        description="how often a stream gets deltas at most, after a message's first; 0: as they come",
    )
    rotation: PositiveDuration = Field(
        default=timedelta(minutes=10), description="age at which a stream ends with a cursor, ± 10 %"
    )
    write_time: PositiveDuration = Field(
        default=timedelta(seconds=30), description="how long a stream's reader may accept nothing"
    )
    drain_delay: Duration = Field(
        default=timedelta(seconds=5), description="after SIGTERM, not Ctrl-C: how long to serve on while unhealthy"
    )
    drain_grace: Duration = Field(
        default=timedelta(seconds=30), description="after that: how long calls and turns may take to end"
    )
    unready_after: PositiveDuration = Field(
        default=timedelta(seconds=30),
        description="health is NOT_SERVING once the database has not answered for so long, until it has answered twice",
    )
    reflection: Switch = Field(default=True, description="serve gRPC reflection")
    channelz: Switch = Field(default=False, description="serve channelz")
    exporter: Literal["none", "console", "otlp", "prometheus"] = Field(
        default="none", description="where telemetry goes"
    )
    otlp_endpoint: Text = Field(
        default="", description="URL of the OTLP collector, such as http://host:4317", repr=False
    )
    prometheus_port: Port = Field(default=9464, description="port of the Prometheus endpoint; 0 takes a free one")
    prometheus_host: Host = Field(
        default=LOOPBACK, description="address of the Prometheus endpoint, which any client may read"
    )
    record_content: Switch = Field(default=False, description="record messages, arguments and results in spans")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="lowest level that is logged"
    )
    log_format: Literal["auto", "json"] = Field(
        default="auto", description="JSON lines; auto: plain text on a terminal"
    )
    replica: Text = Field(default="", description="name of this replica in logs and leases; without it, a random one")

    def with_replica_name(self) -> Self:
        """Returns the settings with a name for this replica: the configured one, or a random one."""
        return self if self.replica else self.model_copy(update={"replica": _random_name()})

    def with_memory(self) -> Self:
        """Returns the settings with the memory of a replica: the configured one, or its part of MEMORY_SHARE."""
        if self.memory is not None:
            return self
        share = int(MEMORY_SHARE * sizes.of_machine()) // self.processes
        return self.model_copy(update={"memory": Size(max(share, LEAST_MEMORY))})

    def address(self, port: int) -> str:
        """Returns what a server on this port listens on: `host:port`, or `unix:PATH`."""
        return self.host if self.host.startswith(UNIX) else f"{self.host}:{port}"

    @property
    def health_at(self) -> str:
        """The host of the health port."""
        return self.health_host or (LOOPBACK if self.host.startswith(UNIX) else self.host)

    @property
    def patience_of_loop(self) -> timedelta:
        """How long leases are renewed while the event loop is blocked."""
        return PATIENCE_IN_LEASES * self.lease if self.loop_patience is None else self.loop_patience

    @property
    def algorithms(self) -> Sequence[str]:
        """The names in `jwt_algorithms`."""
        return [name.strip() for name in self.jwt_algorithms.split(",")]

    @property
    def has_tls(self) -> bool:
        """True if callers connect by TLS."""
        return self.tls_certificate is not None

    @model_validator(mode="after")
    def _check_identity(self) -> Self:
        for name, limit in _identity_problems(self):
            raise _misfit(name, limit)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if timedelta() < self.keep_events < 2 * self.operation_time:
            raise _misfit("keep_events", "must be 0s, or at least twice --operation-time")
        if 2 * self.patience_of_loop < self.lease:
            raise _misfit("loop_patience", "must be at least half of --lease: leases that young are not renewed yet")
        ports = LAST_PORT + 1 - self.prometheus_port
        if self.processes > ports and self.prometheus_port:
            raise _misfit("processes", f"must be at most {ports} with --prometheus-port {self.prometheus_port}")
        for name in ("health_host", "prometheus_host"):
            if str(getattr(self, name)).startswith(UNIX):
                raise _misfit(name, "must have a port: probes and scrapes come by TCP")
        if self.health_port and self.health_port == self.port and not self.host.startswith(UNIX):
            raise _misfit("health_port", "must differ from --port")
        if self.processes > 1 and self.host.startswith(UNIX):
            raise _misfit("host", "must have a port with --processes: several processes cannot share a Unix socket")
        return self


def _identity_problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields each setting of identity or TLS that does not fit the others, and what it must be."""
    yield from _tls_problems(settings)
    if settings.identity != "none" and settings.principals is None:
        yield "identity", f"{settings.identity} needs --principals"
    if "jwt" in settings.identity.split("+") and not (
        settings.jwt_issuer and settings.jwt_audience and settings.jwt_keys
    ):
        yield "identity", f"{settings.identity} needs --jwt-issuer, --jwt-audience and --jwt-keys"
    if settings.identity in ("mtls+jwt", "forwarded") and not settings.trusted_peers:
        yield "identity", f"{settings.identity} needs --trusted-peers"
    if settings.identity != "none" and settings.heartbeat > RECHECK:
        yield "heartbeat", f"must be at most {shown(RECHECK)} with --identity {settings.identity}: {_WHY_OFTEN}"
    ids = PeerList.parse(settings.trusted_peers).ids
    if settings.identity == "mtls+jwt" and not ids:
        yield "trusted_peers", "must have SPIFFE ids with --identity mtls+jwt"
    if settings.identity == "forwarded" and ids and not settings.tls_client_ca:
        yield "trusted_peers", "needs --tls-client-ca for SPIFFE ids"
    if not settings.trust_network:
        yield from _network_problems(settings)


def _tls_problems(settings: Settings) -> Iterator[tuple[str, str]]:
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        name = "tls_certificate" if settings.has_tls else "tls_key"
        yield name, "needs the other of --tls-certificate and --tls-key"
    if settings.tls_client_ca and (not settings.has_tls or settings.identity in ("none", "jwt")):
        yield "tls_client_ca", "needs --tls-certificate, and --identity mtls, mtls+jwt or forwarded"
    if "mtls" in settings.identity and not settings.tls_client_ca:
        yield "identity", f"{settings.identity} needs --tls-certificate, --tls-key and --tls-client-ca"


def _network_problems(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields each setting by which the network is trusted."""
    only = "must be a loopback address such as 127.0.0.1, or unix:PATH"
    if settings.identity == "none" and not is_local(settings.host):
        why = "with identity none every caller may do everything"
        yield "host", f"{only}: {why}; choose an --identity, or pass --trust-network"
    if settings.identity == "jwt" and not settings.has_tls and not is_local(settings.host):
        why = "without TLS a token can be read on its way"
        yield "host", f"{only}: {why}; set --tls-certificate and --tls-key, or pass --trust-network"
    if is_plain_http(settings.jwt_keys):
        yield "jwt_keys", "must be an https URL, a file, or on loopback: the keys could be replaced on their way"


GROUPS: Final[Mapping[str, str]] = {
    "host": "where it listens",
    "mongodb_uri": "the database",
    "agents": "agents and models",
    "concurrency": "turns",
    "operation_time": "stored data",
    "heartbeat": "streams and the end",
    "reflection": "operations",
}
"""The title of each group in the help, by the group's first setting."""

SECRETS: Final = tuple(name for name, field in Settings.model_fields.items() if not field.repr)
"""The settings that may hold a password: a variable with `_FILE` at its end may name a file with the value."""

_OTHER_VARIABLES: Final[Mapping[str, str]] = {
    "mongodb_uri": "MONGODB_URI",
    "model": "OPENAI_MODEL",
    "openai_base_url": "OPENAI_BASE_URL",
}


def flag_of(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def variables_of(name: str) -> tuple[str, ...]:
    """Returns the variables of a setting; the first one that is set and not empty counts."""
    other = _OTHER_VARIABLES.get(name)
    return (PREFIX + name.upper(), *((other,) if other else ()))


def choices_of(name: str) -> tuple[str, ...]:
    """Returns the only values that a setting can have; nothing if there is no such list."""
    annotation = Settings.model_fields[name].annotation
    return tuple(value for value in get_args(annotation) if isinstance(value, str))


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns `environ` with all of these settings in place of its own, for another process to read."""
    written = {name: _written(value) for name, value in settings}
    ours = {CONFIG_VARIABLE, *(variable for name in written for variable in variables_of(name))}
    ours |= {variable + SUFFIX for name in SECRETS for variable in variables_of(name)}
    others = {name: value for name, value in environ.items() if name not in ours}
    return {**others, **{PREFIX + name.upper(): value for name, value in written.items() if value}}


def shown(value: object) -> str:
    """Returns a default as a caller would write it; "" for none."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        if 0 < seconds < 1:
            return f"{seconds * 1000:g}ms"
        if seconds >= 172_800 and not seconds % 86_400:
            return f"{seconds / 86_400:g}d"
        return f"{seconds / 60:g}m" if seconds >= 120 else f"{seconds:g}s"
    if value is None or value == "":
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _misfit(name: str, limit: str) -> PydanticCustomError:
    return PydanticCustomError(TOGETHER, "{name} {limit}", {"name": name, "limit": limit})


def _random_name() -> str:
    return f"replica-{os.getpid()}-{secrets.token_hex(3)}"


def _written(value: object) -> str:
    """Returns the value as its variable has it; "" for none."""
    return durations.written(value) if isinstance(value, timedelta) else shown(value)
