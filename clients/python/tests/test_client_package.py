"""The package beside others: the service's own copy of the protos, and targets of every kind."""

import json
import subprocess
import sys

import pytest

from turnkeeper_client.channel import service_config, with_dns
from turnkeeper_client.pb.v1 import agent_pb2, approval_pb2, chat_pb2, session_pb2


@pytest.mark.parametrize("order", [("turnkeeper", "turnkeeper_client"), ("turnkeeper_client", "turnkeeper")])
def test_the_protos_of_client_and_service_work_in_one_process(order: tuple[str, str]) -> None:
    pytest.importorskip("turnkeeper.pb.v1.chat_pb2")
    names = ["agent", "approval", "chat", "error", "event", "message", "session"]
    lines = [f"import {package}.pb.v1.{name}_pb2 as {package}_{name}" for package in order for name in names]
    lines += [f"assert turnkeeper_{name}.DESCRIPTOR is turnkeeper_client_{name}.DESCRIPTOR" for name in names]
    lines += ["ours = turnkeeper_client_chat.Turn(turn_id='t1')", "assert ours == turnkeeper_chat.Turn(turn_id='t1')"]
    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(lines)], check=True)


def test_the_service_configs_name_methods_that_exist() -> None:
    methods = {
        (service.full_name, method.name)
        for file in (agent_pb2, approval_pb2, chat_pb2, session_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    for name in ("direct", "mesh"):
        config = json.loads(service_config("direct" if name == "direct" else "mesh"))
        for entry in (entry for group in config["methodConfig"] for entry in group["name"]):
            known = methods if "method" in entry else {(service, None) for service, _ in methods}
            assert (entry["service"], entry.get("method")) in known


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
