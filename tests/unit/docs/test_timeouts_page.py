"""The page of times: its defaults are those of the code and of the shipped files, and each rule between them holds."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

import pytest

from tests.unit.docs.pages import DOCS, ROOT, table
from turnkeeper import durations
from turnkeeper.domain.agent import AgentLimits
from turnkeeper.engine.eventlog import session_lines
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.pb.v1.rules_pb2 import rules
from turnkeeper.rpc import bodies, server
from turnkeeper.settings import Settings, shown
from turnkeeper.store.mongo import client, indexes
from turnkeeper.store.mongo.transactions import attempt
from turnkeeper.supervision import supervisor
from turnkeeper.tools.remote import channel

PAGE: Final = (DOCS / "operations/timeouts.md").read_text(encoding="utf-8")
ENVOY: Final = (ROOT / "deploy/envoy/envoy.yaml").read_text(encoding="utf-8")
CHART: Final = (ROOT / "deploy/helm/turnkeeper/templates/deployment.yaml").read_text(encoding="utf-8")


def envoy(words: str) -> float:
    """Returns the time in the proxy's file behind these words."""
    return seconds(one(rf"{words}\s*(\d+s)", ENVOY))


def one(pattern: str, text: str) -> str:
    """Returns what the pattern's group is in the text, where it must always be the same."""
    (value,) = set(re.findall(pattern, text))
    return str(value)


def seconds(text: str) -> float:
    return durations.parse(text).total_seconds()


def client_times() -> Iterator[tuple[str, float]]:
    """Yields the times of both service configs, by what they are for."""
    kinds = {"SessionService": "unary call", "SendMessage": "waiting call", "WatchEvents": "stream"}
    for name in ("direct", "mesh"):
        config = json.loads((ROOT / f"protos/service_config/{name}.json").read_text(encoding="utf-8"))
        for group in config["methodConfig"]:
            first = group["name"][0]
            if kind := kinds.get(first.get("method") or first["service"].rpartition(".")[2]):
                yield f"a client's {kind}", seconds(group["timeout"])


def option(name: str) -> float:
    return dict(server.OPTIONS)[name] / 1000


def settings() -> Mapping[str, float]:
    return {name: default.total_seconds() for name, default in defaults().items()}


def defaults() -> Mapping[str, timedelta]:
    """Returns the default of each time that is a setting; of one that follows from another, what follows."""
    fields = {f"--{name.replace('_', '-')}": field.default for name, field in Settings.model_fields.items()}
    times = {name: default for name, default in fields.items() if isinstance(default, timedelta)}
    return {**times, "--loop-patience": Settings().patience_of_loop}


WAIT: Final = chat_pb2.GetTurnRequest.DESCRIPTOR.fields_by_name["wait"]
OUTSIDE_SETTINGS: Final[Mapping[str, float]] = {
    **dict(client_times()),
    "a try of a unary call": envoy("per_try_timeout:"),
    "the route of a unary call": envoy(r"cluster: turnkeeper\n\s+timeout:"),
    "the route of a waiting call": envoy(r"&wait \{cluster: turnkeeper, timeout:"),
    "the arrival of a request": bodies.BODY_SECONDS,
    "the line of a session's callers": session_lines.PATIENCE_S,
    "the age of a connection": option("grpc.max_connection_age_ms"),
    "the grace of an old connection": option("grpc.max_connection_age_grace_ms"),
    "tool_timeout of an agent": AgentLimits().tool_timeout.total_seconds(),
    "the connection to a tool server over gRPC": channel.CONNECT_TIME,
    "the driver's connection": client.CONNECT_S,
    "the end of a write": 2 * attempt.LOOK_S,  # the abort, and the look
    "transactionLifetimeLimitSeconds": indexes.LONGEST_TRANSACTION_S,
    "closing after a drain": supervisor.CLOSING_TIME,
    "a wait": float(WAIT.GetOptions().Extensions[rules].max_seconds),
}
"""The times of the page that are no settings, in seconds, from where they are set."""
OF_RULES: Final[Mapping[str, float]] = {
    "the proxy's idle time of a stream": seconds(
        one(r"STREAM_IDLE_TIMEOUT=(\d+s)", (ROOT / "deploy/envoy/variables.env").read_text(encoding="utf-8"))
    ),
    "the liveness probe's time to a restart": float(one(r"livenessProbe:(?:\n.*)+?periodSeconds: (\d+)", CHART))
    * float(one(r"livenessProbe:(?:\n.*)+?failureThreshold: (\d+)", CHART)),
    "the balancer's time to notice NOT_SERVING": 2 * envoy(r"\n\s+no_traffic_interval:"),
}
"""What only the rules name."""


@pytest.fixture(scope="module")
def times() -> Mapping[str, float]:
    """Returns the seconds of each time."""
    grace = one(r"terminationGracePeriodSeconds: \{\{ add \$drain (\d+) \}\}", CHART)
    drain = settings()["--drain-delay"] + settings()["--drain-grace"]
    return {**settings(), **OUTSIDE_SETTINGS, **OF_RULES, "terminationGracePeriodSeconds": drain + float(grace)}


def rows() -> Sequence[tuple[str, str]]:
    """Returns each time with its default."""
    times = [(row[0], row[1]) for row in table(PAGE, "time", "default", "at its end")]
    return [(name, default) for name, default in times if not name.startswith("**")]


@pytest.mark.parametrize(("name", "default"), rows(), ids=lambda value: value)
def test_each_default_is_that_of_the_code_or_the_file(times: Mapping[str, float], name: str, default: str) -> None:
    if name.startswith("--"):
        assert default == shown(defaults()[name])
    assert seconds(default) == times[name]


def test_each_time_that_a_setting_or_a_file_has_is_on_the_page() -> None:
    """Those of identity, of the embedded database and of stored data are no times between a caller and its turn."""
    others = {"--jwt-keys-age", "--poll", "--keep-events", "--purge-after", "--delta-interval"}
    assert {name for name, _ in rows()} == {*(settings().keys() - others), *OUTSIDE_SETTINGS}


def value(expression: str, times: Mapping[str, float]) -> float:
    """Returns the seconds of a sum of times; `10 %` is a tenth of what stands before it."""
    total = 0.0
    for part in expression.split(" + "):
        name = part.partition(", ")[0]
        if name == "10 %":
            total *= 1.1
        else:
            total += times[name] if name in times else seconds(name)
    return total


@pytest.mark.parametrize(
    ("longer", "shorter"),
    [row[:2] for row in table(PAGE, "this", "is longer than", "or else")],
    ids=lambda expression: expression,
)
def test_each_rule_holds_for_the_defaults(times: Mapping[str, float], longer: str, shorter: str) -> None:
    assert value(longer, times) > value(shorter, times)
