"""The settings of `turnkeeper serve`: their types, limits and defaults. `settings_sources` reads them."""

import ipaddress
import os
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, model_validator
from pydantic_core import PydanticCustomError

from turnkeeper import durations, sizes
from turnkeeper.sizes import Size

PREFIX: Final = "TURNKEEPER_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
LAST_PORT: Final = 65_535
SHORTEST: Final = timedelta(milliseconds=1)
LONGEST: Final = timedelta(days=36_525)
"""A hundred years: dates that far away can still be stored."""
LONGEST_OPERATION: Final = timedelta(hours=1)
LONGEST_DELTA_INTERVAL: Final = timedelta(seconds=10)
MOST_PROCESSES: Final = 1_024
MOST_TURNS: Final = 100_000
LEAST_MEMORY: Final = Size(256 << 20)
MEMORY_SHARE: Final = 0.5
"""Of the memory of the machine, or of its control group: the rest is for the database, tools and files."""
UNREADABLE: Final = "unreadable"
"""The type of the error of a value that is not of its kind; the error's context has what is `expected`."""
TOGETHER: Final = "together"
"""The type of the error of a value that does not fit another one; the error's context has its `name` and `limit`."""
_DATABASE_BYTES: Final = 63

T = TypeVar("T")


def _read(kind: type, parse: Callable[[str], object], expected: str) -> BeforeValidator:
    """Returns a validator that passes values of `kind` and parses text. Other values are UNREADABLE."""

    def read(value: object) -> object:
        if type(value) is kind:
            return value
        try:
            if isinstance(value, str):
                return parse(value)
        except (ValueError, KeyError):
            pass
        raise PydanticCustomError(UNREADABLE, "must be {expected}", {"expected": expected})

    return BeforeValidator(read)


def _check(holds: Callable[[T], bool], limit: str) -> AfterValidator:
    """Returns a validator that raises ValueError with `limit` for a value for which `holds` is false."""

    def check(value: T) -> T:
        if not holds(value):
            raise ValueError(f"must {limit}")
        return value

    return AfterValidator(check)


def _path(value: object) -> object:
    """Returns the path. Raises ValueError for an empty text, which would name the working directory."""
    if value == "":
        raise ValueError("must not be empty")
    return value


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.strip().lower()]


def _is_text(value: str) -> bool:
    """Returns False for what no other program can read: a byte that is not UTF-8 is half a character here."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _names_a_database(value: str) -> bool:
    return len(value.encode()) <= _DATABASE_BYTES and not set(value) & set(' ."$/\\')


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    """Returns the host as it stands before a port."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _from(least: int, most: int) -> AfterValidator:
    def holds(count: int) -> bool:
        return least <= count <= most

    return _check(holds, f"be from {least} to {most}")


_WHOLE_NUMBER = _read(int, int, "a whole number")
_DURATION = _read(timedelta, durations.parse, f"a duration such as {durations.EXAMPLES}")
_SIZE = _read(Size, Size.parse, f"a size such as {sizes.EXAMPLES}")
_TEXT = _check(_is_text, "be UTF-8 text without NUL characters")

Text = Annotated[str, _TEXT]
Name = Annotated[str, _TEXT, _check(bool, "not be empty")]
Host = Annotated[
    Name,
    _check(
        _is_loopback,
        "be a loopback address such as 127.0.0.1: with identity none every caller may do everything, "
        "so only loopback is served",
    ),
    AfterValidator(_bracketed),
]
DatabaseName = Annotated[
    Name,
    _check(_names_a_database, f'be at most {_DATABASE_BYTES} bytes without spaces, and without any of . " $ / \\'),
    _check(lambda name: name not in {"admin", "config", "local"}, "not be admin, config or local"),
]
FilePath = Annotated[
    Path, BeforeValidator(_path), _check(lambda path: "\0" not in str(path), "be text without NUL characters")
]
Switch = Annotated[bool, _read(bool, _switch, "true or false")]
Processes = Annotated[int, _WHOLE_NUMBER, _from(1, MOST_PROCESSES)]
Turns = Annotated[int, _WHOLE_NUMBER, _from(1, MOST_TURNS)]
Memory = Annotated[InstanceOf[Size], _SIZE, _check(lambda size: size >= LEAST_MEMORY, f"be at least {LEAST_MEMORY}")]
Port = Annotated[int, _WHOLE_NUMBER, _from(0, LAST_PORT)]
Duration = Annotated[timedelta, _DURATION, _check(lambda duration: duration <= LONGEST, "be at most 36525d")]
PositiveDuration = Annotated[
    timedelta, _DURATION, _check(lambda duration: SHORTEST <= duration <= LONGEST, "be from 1ms to 36525d")
]
DeltaInterval = Annotated[
    timedelta, _DURATION, _check(lambda duration: duration <= LONGEST_DELTA_INTERVAL, "be at most 10s")
]
OperationTime = Annotated[
    timedelta, _DURATION, _check(lambda duration: SHORTEST <= duration <= LONGEST_OPERATION, "be from 1ms to 60m")
]


class Settings(BaseModel):
    """The values of all settings. Raises pydantic's ValidationError, which shows no value, if one cannot be.

    Fields that may hold a password are not in the text of the object.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: Host = Field(
        default="127.0.0.1", description="address to listen on; with identity none only a loopback address"
    )
    port: Port = Field(default=50051, description="port to listen on; 0 takes a free one and prints it")
    processes: Processes = Field(default=1, description="server processes on that port, each a replica of its own")
    identity: Literal["none"] = Field(
        default="none", description="how callers are identified; none: each one is `default`"
    )
    principals: FilePath | None = Field(
        default=None, description="file of principals, TOML: whose credential it is, and what they may do; watched"
    )
    mongodb_uri: Text = Field(default="", description="URI of your MongoDB replica set", repr=False)
    database: DatabaseName = Field(default="turnkeeper", description="name of the database")
    embedded: Switch = Field(default=False, description="start a private MongoDB, a replica set of one")
    data_dir: FilePath = Field(default=Path(".turnkeeper"), description="folder for the data of the private MongoDB")
    agents: FilePath | None = Field(default=None, description="file of agents, TOML; without it there are two samples")
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
        default=timedelta(seconds=30), description="how long a turn belongs to its owner after each renewal"
    )
    loop_patience: PositiveDuration = Field(
        default=timedelta(seconds=10),
        description="how long leases are renewed while the process is blocked; a lease later its turns are lost",
    )
    sweep: PositiveDuration = Field(
        default=timedelta(seconds=2), description="how often lapsed leases and expired approvals are searched for"
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
        default=timedelta(seconds=15), description="silence on a stream after which a keep-alive is sent"
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
    reflection: Switch = Field(default=True, description="serve gRPC reflection")
    channelz: Switch = Field(default=False, description="serve channelz")
    exporter: Literal["none", "console", "otlp", "prometheus"] = Field(
        default="none", description="where telemetry goes"
    )
    otlp_endpoint: Text = Field(
        default="", description="URL of the OTLP collector, such as http://host:4317", repr=False
    )
    prometheus_port: Port = Field(
        default=9464, description="port of the Prometheus endpoint, on loopback; 0 takes a free one"
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

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if timedelta() < self.keep_events < 2 * self.operation_time:
            raise _misfit("keep_events", "must be 0s, or at least twice --operation-time")
        ports = LAST_PORT + 1 - self.prometheus_port
        if self.processes > ports and self.prometheus_port:
            raise _misfit("processes", f"must be at most {ports} with --prometheus-port {self.prometheus_port}")
        return self


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
