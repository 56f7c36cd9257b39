"""The page of the catalogue: its file can be read, its keys are those of the code, and its figures, too."""

import re
from pathlib import Path

import pytest

from tests.unit.docs.pages import blocks, reference, table
from turnkeeper.tools import catalogue, servers
from turnkeeper.tools.mcp import tables
from turnkeeper.tools.naming import full_name
from turnkeeper.tools.remote import table as remote
from turnkeeper.tools.results import RESULT_BYTES
from turnkeeper.watched_file import BadFile

PAGE = reference("catalogue")


def test_its_files_can_be_read() -> None:
    files = [catalogue.parse(Path("catalogue.toml"), text.encode()) for text in blocks(PAGE, "toml")]
    assert [server.name for server in files[0].servers] == ["time"]
    assert [entry.tool for entry in files[0].entries] == ["time__*", "send_message"]


def test_the_keys_of_a_tool() -> None:
    rows = {row[0]: (row[1], row[2]) for row in table(PAGE, "key", "type", "default", "meaning")}
    assert rows.keys() == {field.alias or name for name, field in catalogue.CatalogueEntry.model_fields.items()}
    assert rows["attempts"] == (f"1 to {catalogue.MOST_ATTEMPTS}", "1")
    assert rows["concurrency"][0] == f"1 to {catalogue.MOST_AT_ONCE:,}"
    assert rows["result_bytes"] == (f"1 to {RESULT_BYTES:,}", str(RESULT_BYTES))


def test_the_keys_of_a_server_that_all_kinds_have() -> None:
    assert [row[0] for row in table(PAGE, "key", "meaning")] == ["name", *catalogue.KINDS]


def test_the_keys_of_mcp_servers() -> None:
    rows = {row[0]: (row[1], row[2]) for row in table(PAGE, "key", "server", "default", "meaning")}
    both = tables.McpTable.model_fields.keys()
    for kind, model in (("stdio", tables.StdioTable), ("http", tables.HttpTable)):
        own = model.model_fields.keys() - both - {"mcp"}
        assert {key for key, (server, _) in rows.items() if server == kind} == own
    assert {key for key, (server, _) in rows.items() if server == "both"} == both
    assert rows["idle"][1] == "10m"


def test_the_keys_of_servers_over_grpc() -> None:
    rows = {row[0]: row[3] for row in table(PAGE, "key", "form", "without it", "meaning")}
    assert list(rows) == list(remote.GrpcTable.model_fields)
    assert f"{remote.MOST_KEYS} at most" in rows["keys"]


def test_its_names_and_times_are_those_of_the_code() -> None:
    assert f"`read.text` of `files` is `{full_name('files', 'read.text')}`" in PAGE
    assert f"waits {servers.LIST_TIME:g} s for the lists" in PAGE


def test_the_mistake_that_it_shows_is_named_like_that() -> None:
    (message,) = re.findall(r"`(catalogue\.toml:7: [^`]+\?)`", PAGE)
    file = '[[server]]\nname = "time"\nmcp = "stdio"\n\n[[tool]]\ntool = "time__*"\ntimout = "5s"\n'
    with pytest.raises(BadFile, match=re.escape(message)):
        catalogue.parse(Path("catalogue.toml"), file.encode())
