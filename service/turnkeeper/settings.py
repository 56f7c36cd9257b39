"""Every knob of `turnkeeper serve`: each is a flag and a variable, and the flag wins."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from turnkeeper import durations

PREFIX = "TURNKEEPER_"


class SettingError(Exception):
    """A setting has a value that it cannot have; the message names it and says what it can be."""


class PortTaken(Exception):
    """The address cannot be listened on."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"{address} cannot be listened on: another program has it. Stop that one, or choose another --port."
        )


def _knob(default: Any, said: str, *, also: str = "", choices: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": said, "also": also, "choices": tuple(choices)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Durations are written 250ms, 30s, 10m, 1h; switches are on with the flag alone, or true and false."""

    host: str = _knob("127.0.0.1", "address to listen on; with identity none only a loopback address")
    port: int = _knob(50051, "port to listen on; 0 takes a free one and prints it")
    processes: int = _knob(1, "server processes on that port, each a replica of its own")
    identity: str = _knob("none", "who callers are: none makes everybody `default`", choices=("none",))
    mongodb_uri: str = _knob("", "your MongoDB replica set", also="MONGODB_URI")
    database: str = _knob("turnkeeper", "name of the database")
    embedded: bool = _knob(False, "start a private one-node replica set of our own")
    data_dir: Path = _knob(Path(".turnkeeper"), "where the embedded database keeps its data")
    agents: Path | None = _knob(None, "file of agents, TOML; without it two samples")
    model: str = _knob("", "name of the model for agents that name none", also="OPENAI_MODEL")
    openai_base_url: str = _knob("", "the model's server, any OpenAI-compatible one", also="OPENAI_BASE_URL")
    local_model: bool = _knob(False, "start the small local model, unless another one is set")
    first_token: timedelta = _knob(timedelta(seconds=60), "how long a model may take to its first token")
    between_tokens: timedelta = _knob(timedelta(seconds=30), "how long a model may be silent in mid-answer")
    answer_time: timedelta = _knob(timedelta(minutes=10), "how long a model may take in all")
    concurrency: int = _knob(64, "turns that run at once on this replica")
    lease: timedelta = _knob(timedelta(seconds=30), "how long a turn is its owner's without a renewal")
    loop_patience: timedelta = _knob(
        timedelta(seconds=10), "how long a blocked process renews on; its turns are lost that long and a lease later"
    )
    sweep: timedelta = _knob(timedelta(seconds=2), "how often lapsed leases and approvals are looked for")
    poll: timedelta = _knob(timedelta(milliseconds=500), "how often what nobody hinted at is looked for")
    operation_time: timedelta = _knob(timedelta(seconds=5), "how long one operation on the database may take")
    keep_events: timedelta = _knob(timedelta(), "how long events can be replayed to streams; 0s: for ever")
    purge_after: timedelta = _knob(timedelta(days=30), "how long after DeleteSession a session is removed for good")
    heartbeat: timedelta = _knob(timedelta(seconds=15), "silence on a stream after which a heartbeat is sent")
    rotation: timedelta = _knob(timedelta(minutes=10), "age at which a stream ends with a cursor, ± 10 %")
    write_time: timedelta = _knob(timedelta(seconds=30), "how long a stream's reader may accept nothing")
    drain_delay: timedelta = _knob(timedelta(seconds=5), "after SIGTERM: how long to serve on while unhealthy")
    drain_grace: timedelta = _knob(timedelta(seconds=30), "after that: how long calls and turns may take to end")
    reflection: bool = _knob(True, "serve gRPC reflection")
    channelz: bool = _knob(False, "serve channelz")
    exporter: str = _knob("none", "where telemetry goes", choices=("none", "console", "otlp", "prometheus"))
    otlp_endpoint: str = _knob("", "the OTLP collector, http://host:4317")
    prometheus_port: int = _knob(9464, "port of the Prometheus endpoint, on loopback; 0 takes a free one")
    record_content: bool = _knob(False, "let messages, arguments and results into spans")
    log_level: str = _knob("INFO", "least level that is logged", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    log_format: str = _knob("auto", "JSON lines, or plain text; auto: plain on a terminal", choices=("auto", "json"))
    replica: str = _knob("", "name of this replica in logs and leases; default: one made up")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            choices = each.metadata["choices"]
            if choices and value not in choices:
                raise SettingError(f"{flag_of(each)} is {value!r}; it can be {', '.join(choices)}")
            if isinstance(value, timedelta) and value <= timedelta() and each.name not in _MAY_BE_ZERO:
                raise SettingError(f"{flag_of(each)} must be more than 0")
        if timedelta() < self.keep_events < 2 * self.operation_time:
            raise SettingError("--keep-events must be 0s, or at least twice --operation-time")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for flag, count in (("--concurrency", self.concurrency), ("--processes", self.processes)):
            if count < 1:
                raise SettingError(f"{flag} must be at least 1")
        for flag, port in (("--port", self.port), ("--prometheus-port", self.prometheus_port)):
            if not 0 <= port <= 65535:
                raise SettingError(f"{flag} must be from 0 to 65535")


_MAY_BE_ZERO = frozenset({"drain_delay", "drain_grace", "keep_events"})


def flag_of(each: "Field[Any]") -> str:
    return "--" + each.name.replace("_", "-")


def variables_of(each: "Field[Any]") -> tuple[str, ...]:
    """The variables that set it; the first that is set counts."""
    also = each.metadata["also"]
    return (PREFIX + each.name.upper(), *((also,) if also else ()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a setting, with its variable and default in the help."""
    for each in fields(Settings):
        default = shown(each.default)
        variable = " or ".join(variables_of(each))
        told = f"{each.metadata['help']} [{variable}{f'; {default}' if default else ''}]".replace("%", "%%")
        if each.type is bool:
            parser.add_argument(
                flag_of(each), dest=each.name, action=argparse.BooleanOptionalAction, default=None, help=told
            )
        else:
            metavar = each.name.upper().replace("_", "-")
            parser.add_argument(flag_of(each), dest=each.name, default=None, help=told, metavar=metavar)


def load(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Flags before variables before defaults. Raises SettingError."""
    given: dict[str, Any] = {}
    for each in fields(Settings):
        flag = getattr(args, each.name, None)
        if flag is not None:
            given[each.name] = flag if isinstance(flag, bool) else _parse(each, flag, flag_of(each))
            continue
        for variable in variables_of(each):
            if environ.get(variable):
                given[each.name] = _parse(each, environ[variable], variable)
                break
    return Settings(**given)


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with all of these settings, so that another process loads them from there."""
    made = {each.name: _written(getattr(settings, each.name)) for each in fields(Settings)}
    ours = {variable for each in fields(Settings) for variable in variables_of(each)}
    others = {name: value for name, value in environ.items() if name not in ours}
    return {**others, **{PREFIX + name.upper(): value for name, value in made.items() if value}}


def shown(value: object) -> str:
    """A default as a caller would write it; empty for none."""
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


def _written(value: object) -> str:
    """As a variable has it; empty for none."""
    return durations.written(value) if isinstance(value, timedelta) else shown(value)


def _parse(each: "Field[Any]", text: str, name: str) -> Any:
    try:
        return _PARSERS[str(getattr(each.type, "__name__", each.type))](text)
    except (ValueError, KeyError):
        raise SettingError(f"{name} is {text!r}; {_EXPECTED[str(getattr(each.type, '__name__', each.type))]}") from None


def _switch(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.strip().lower()]


_PARSERS: Mapping[str, Any] = {
    "str": str,
    "int": int,
    "bool": _switch,
    "Path": Path,
    "Union": Path,
    "UnionType": Path,
    "pathlib.Path | None": Path,
    "timedelta": durations.parse,
}
_EXPECTED: Mapping[str, str] = {
    "int": "it must be a whole number",
    "bool": "it must be true or false",
    "timedelta": f"it must be a duration such as {durations.EXAMPLES}",
}
