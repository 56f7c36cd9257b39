"""The shipped Envoy file: its variables, what its routes are for, and which answers eject a replica."""

import re
import string
from pathlib import Path
from typing import Final

from tests.unit.deploy.calls import methods, paths
from turnkeeper.rpc.identity import ON_BEHALF_OF
from turnkeeper.rpc.status import DETAILS_KEY, PUSHBACK_KEY

FOLDER: Final = Path(__file__).resolve().parents[3] / "deploy" / "envoy"
TEXT: Final = (FOLDER / "envoy.yaml").read_text(encoding="utf-8")


def routes(kind: str) -> set[str]:
    """Returns the exact paths of ours whose route is this alias, or the one that defines it."""
    return set(re.findall(rf"match: {{path: (/turnkeeper\.v1\.\S+)}}\n +route: [*&]{kind}\b", TEXT))


def test_each_variable_is_documented_and_used() -> None:
    files = [FOLDER / "envoy.yaml", *sorted((FOLDER / "sds").glob("*.yaml"))]
    used = {name for file in files for name in string.Template(file.read_text(encoding="utf-8")).get_identifiers()}
    documented = re.findall(r"^([A-Z0-9_]+)=\S+$", (FOLDER / "variables.env").read_text(encoding="utf-8"), re.MULTILINE)
    assert used == set(documented)
    assert len(documented) == len(set(documented))


def test_each_stream_has_a_route_of_streams_and_each_wait_one_of_waits() -> None:
    assert routes("stream") == paths()
    assert routes("wait") == paths(waits=True)


def test_streams_and_waits_have_no_timeout_of_a_try_and_other_calls_have_two_tries() -> None:
    stream = re.search(r"&stream {(.*)}", TEXT)
    wait = re.search(r"&wait {(.*)}", TEXT)
    assert stream
    assert wait
    assert stream[1] == 'cluster: turnkeeper, timeout: 0s, idle_timeout: "${STREAM_IDLE_TIMEOUT}"'
    assert wait[1] == "cluster: turnkeeper, timeout: 130s, idle_timeout: 140s"
    shared, _, rest = TEXT.partition("routes:")
    assert "per_try" not in shared
    others = rest[rest.index('match: {prefix: "/"}') :]
    assert "per_try" not in rest.removesuffix(others)
    assert re.findall(r"\b((?:per_try_)?timeout: \w+)$", others[: others.index("clusters:")], re.MULTILINE) == [
        "timeout: 20s",
        "per_try_timeout: 8s",
    ]
    assert set(re.findall(r"num_retries: (\d+)", TEXT)) == {"1"}


def test_every_call_may_be_repeated_by_a_proxy() -> None:
    """Envoy repeats any call once, so each must be declared to be idempotent."""
    assert [method.full_name for method in methods() if not method.GetOptions().idempotency_level] == []


def test_answers_eject_no_replica() -> None:
    outliers = TEXT[TEXT.index("outlier_detection:") : TEXT.index("circuit_breakers:")]
    enforced = dict(re.findall(r"enforcing_(\w+): (\d+)", outliers))
    assert "split_external_local_origin_errors: true" in outliers
    assert {name for name, percent in enforced.items() if percent != "0"} == {"consecutive_local_origin_failure"}
    assert enforced.keys() >= {"consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage"}


def headers(name: str) -> set[str]:
    """Returns the header names of a rule for pages of other origins."""
    rule = re.search(rf"^ +{name}_headers: >-\n((?: +[\w, -]+\n)+?)(?= +\w+:)", TEXT, re.MULTILINE)
    assert rule
    return set(re.split(r",\s+", rule[1].strip()))


def test_pages_can_read_what_comes_beside_an_answer_and_send_what_we_read() -> None:
    assert headers("expose") == {"grpc-status", "grpc-message", DETAILS_KEY, PUSHBACK_KEY, "x-request-id"}
    assert headers("allow") >= {
        "authorization",
        "grpc-timeout",
        "x-grpc-web",
        "x-request-id",
        "traceparent",
        ON_BEHALF_OF,
    }
