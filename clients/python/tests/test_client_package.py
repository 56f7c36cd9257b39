"""The package beside others: the service's own copy of the protos, and targets of every kind."""

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import requires as requires_of
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from packaging.requirements import Requirement

import turnkeeper_client
from turnkeeper_client import Client, sync
from turnkeeper_client.channel import Config, service_config, with_dns
from turnkeeper_client.pb.v1 import agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, session_pb2
from turnkeeper_client.requests import STREAM_TIMEOUT, UNARY_TIMEOUT, WAIT_TIMEOUT, duration

ROOT = Path(__file__).resolve().parents[3]
PROTOBUF_7 = ROOT / "build/protobuf7"
NAMES: tuple[Config, ...] = ("direct", "mesh")
METHODS = {
    (service.full_name, method.name): method
    for file in (agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, session_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@pytest.mark.skipif(find_spec("turnkeeper") is None, reason="needs the service: pip install -e .")
@pytest.mark.parametrize("order", [("turnkeeper", "turnkeeper_client"), ("turnkeeper_client", "turnkeeper")])
def test_the_protos_of_client_and_service_work_in_one_process(order: tuple[str, str]) -> None:
    names = ["agent", "approval", "chat", "error", "event", "message", "session"]
    lines = [f"import {package}.pb.v1.{name}_pb2 as {package}_{name}" for package in order for name in names]
    lines += [f"assert turnkeeper_{name}.DESCRIPTOR is turnkeeper_client_{name}.DESCRIPTOR" for name in names]
    lines += ["ours = turnkeeper_client_chat.Turn(turn_id='t1')", "assert ours == turnkeeper_chat.Turn(turn_id='t1')"]
    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(lines)], check=True)


def test_the_service_configs_name_methods_that_exist() -> None:
    for name in NAMES:
        config = json.loads(service_config(name))
        for entry in (entry for group in config["methodConfig"] for entry in group["name"]):
            known = METHODS if "method" in entry else {(service, "") for service, _ in METHODS}
            assert (entry["service"], entry.get("method", "")) in known


@pytest.mark.parametrize("name", NAMES)
def test_each_call_has_the_time_of_its_kind_and_streams_are_not_repeated(name: Config) -> None:
    groups = {
        (entry["service"], entry.get("method", "")): group
        for group in json.loads(service_config(name))["methodConfig"]
        for entry in group["name"]
    }
    for (service, method), descriptor in METHODS.items():
        group = groups.get((service, method)) or groups[service, ""]
        is_wait = method in ("SendMessage", "GetTurn", "WaitApproval")
        expected = STREAM_TIMEOUT if descriptor.server_streaming else WAIT_TIMEOUT if is_wait else UNARY_TIMEOUT
        assert group["timeout"] == f"{expected:g}s", method
        repeats = name == "direct" and not descriptor.server_streaming and method != "CancelTurns"
        assert ("retryPolicy" in group) is repeats, method


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:50051", "dns:///127.0.0.1:50051"),
        ("turnkeeper.example:443", "dns:///turnkeeper.example:443"),
        ("dns:///turnkeeper:50051", "dns:///turnkeeper:50051"),
        ("unix:/run/turnkeeper.sock", "unix:/run/turnkeeper.sock"),
        ("ipv6:[::1]:50051", "ipv6:[::1]:50051"),
        ("dns.example:50051", "dns:///dns.example:50051"),
    ],
)
def test_a_name_means_every_replica(target: str, expected: str) -> None:
    assert with_dns(target) == expected


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("http://127.0.0.1:50051", 'write the target without "http://": Client("127.0.0.1:50051")'),
        ("https://a.example:443/", 'without "https://": Client("a.example:443", credentials=Credentials(ca=…))'),
        ("grpc://a:1", 'without "grpc://": Client("a:1")'),
        ("", 'the target is empty; write the host and the port: Client("127.0.0.1:50051")'),
    ],
)
def test_a_target_that_is_a_url_is_refused_with_what_to_write(target: str, advice: str) -> None:
    for client in (Client, sync.Client):
        with pytest.raises(ValueError, match=re.escape(advice)):
            client(target)


def test_times_are_seconds_or_timedeltas() -> None:
    for given in (5, 5.0, timedelta(seconds=5)):
        assert duration(given) == Duration(seconds=5)
    assert duration(None) is None
    assert duration(0) == Duration()
    for wrong in (-1, float("nan"), float("inf"), "5", True, 1e300, timedelta(seconds=-1)):
        with pytest.raises(ValueError, match=r"delta_interval=5$"):
            duration(wrong, "delta_interval")  # type: ignore[arg-type]


def test_the_version_is_that_of_the_package() -> None:
    assert turnkeeper_client.__version__ == version("turnkeeper-client")
    requires = [Requirement(text) for text in requires_of("turnkeeper-client") or ()]
    assert [requirement.name for requirement in requires if requirement.marker] == ["grpcio-health-checking", "pyjwt"]


@pytest.mark.skipif(not PROTOBUF_7.exists(), reason="needs protobuf 7: make build/protobuf7.stamp")
def test_the_client_works_on_the_next_protobuf_as_well() -> None:
    """The lock has protobuf 6. `make client-protobuf7` runs all of the client's tests on 7."""
    tests = [Path(__file__).parent / f"test_client_{name}.py" for name in ("turn_stream", "errors")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-o", f"cache_dir={PROTOBUF_7}/pytest", *tests],
        env={**os.environ, "PYTHONPATH": str(PROTOBUF_7), "PYTEST_ADDOPTS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import turnkeeper_client, google.protobuf as p; print(p.__version__)"],
        env={**os.environ, "PYTHONPATH": str(PROTOBUF_7)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.startswith("7.")
