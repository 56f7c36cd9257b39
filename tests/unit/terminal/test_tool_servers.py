"""What `turnkeeper doctor` finds about tool servers, and how `turnkeeper tools` shows their tools."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.tools.servers import LocalServer
from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.rpc.views import tool_view
from turnkeeper.terminal.doctor import fault_of, listed
from turnkeeper.terminal.names import source_of
from turnkeeper.tools import catalogue
from turnkeeper_client.pb.v1 import agent_pb2

SPEC = ToolSpec(
    name="files__read_text_cae4f5",
    description="Reads.",
    schema_json="{}",
    tool_class=ToolClass.READ_ONLY,
    source="files",
    foreign_name="read.text",
)


@pytest.fixture
def server() -> LocalServer:
    content = catalogue.parse(Path("catalogue.toml"), b'[[server]]\nname = "time"\nmcp = "stdio"\n')
    return LocalServer(content.servers[0])


def test_a_server_that_has_listed_nothing_is_a_fault(server: LocalServer) -> None:
    assert fault_of(server, None) == "the server time does not answer: it has listed no tools"
    server.offer("now")
    assert fault_of(server, None) == ""
    server.problem = "nothing answers there"
    assert fault_of(server, listed(server)) == "the server time does not answer: nothing answers there"


def test_a_list_that_is_another_one_each_time_is_a_fault(server: LocalServer) -> None:
    server.offer("now")
    before = listed(server)
    server.offer("now")
    assert fault_of(server, before) == "", "another number, the same tools"
    server.offer("now", description="At noon.")
    assert fault_of(server, before).startswith("the server time lists other tools each time: ")


def test_a_mapped_name_is_shown_beside_the_servers_own() -> None:
    plain_spec = replace(SPEC, name="files__stat", foreign_name="", timeout=timedelta(seconds=5))
    views = [tool_view(spec, ()) for spec in (SPEC, plain_spec)]
    mapped, plain = (agent_pb2.AgentTool.FromString(view.SerializeToString()) for view in views)
    assert (mapped.name, source_of(mapped)) == ("files__read_text_cae4f5", "files: read.text")
    assert (plain.name, source_of(plain)) == ("files__stat", "files")
    assert (mapped.HasField("timeout"), plain.timeout.ToTimedelta()) == (False, timedelta(seconds=5))
