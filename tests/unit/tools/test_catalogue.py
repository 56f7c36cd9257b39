"""The catalogue: what it can say, how a mistake in it is named, and that it tightens tools and never loosens them."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.tools import catalogue
from turnkeeper.tools.catalogue import Catalogue, CatalogueEntry
from turnkeeper.watched_file import BadFile

PATH = Path("catalogue.toml")
FULL = """
[[server]]
name = "time"
mcp = "stdio"
command = ["mcp-server-time"]

[[server]]
name = "ledger-2"
grpc = "ledger.internal:443"

[[tool]]
tool = "time__get_*"
class = "read_only"
timeout = "5s"
attempts = 3
concurrency = 4
result_bytes = 1024
trusted_output = true
agents = ["clerk", "desk-*"]

[[tool]]
tool = "time__*"
"""
OURS = ToolSpec(name="send", description="", schema_json="{}", tool_class=ToolClass.IDEMPOTENT, source="python")
THEIRS = replace(OURS, name="time__get_now", source="time", tool_class=ToolClass.READ_ONLY)


def read(text: str) -> Catalogue:
    return catalogue.parse(PATH, text.encode())


def test_a_file_with_every_key() -> None:
    read_file = read(FULL)
    assert [(server.name, server.kind, server.number) for server in read_file.servers] == [
        ("time", "mcp", 0),
        ("ledger-2", "grpc", 1),
    ]
    assert read_file.servers[0].values == {"mcp": "stdio", "command": ["mcp-server-time"]}
    entry = read_file.entry_of("time__get_now")
    assert entry is not None
    assert (entry.tool_class, entry.timeout, entry.attempts) == (ToolClass.READ_ONLY, timedelta(seconds=5), 3)
    assert (entry.concurrency, entry.result_bytes, entry.trusted_output) == (4, 1024, True)
    assert (entry.admits("clerk"), entry.admits("desk-7"), entry.admits("night")) == (True, True, False)
    assert read_file.entry_of("time__convert") == CatalogueEntry(tool="time__*")
    assert read_file.entry_of("send") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[tool]\n", "catalogue.toml:1: this is not TOML: "),
        ("[[tools]]\n", "catalogue.toml:1: tools: there is no such key; did you mean tool?"),
        ("[[tool]]\n", "catalogue.toml:1: tool.0.tool: Field required"),
        (
            '[[tool]]\ntool = "a"\ntimout = "5s"',
            "catalogue.toml:3: tool.0.timout: there is no such key; did you mean timeout?",
        ),
        (
            '[[tool]]\ntool = "a"\nclas = "x"',
            "catalogue.toml:3: tool.0.clas: there is no such key; did you mean class?",
        ),
        ('[[tool]]\ntool = "a"\nclass = "safe"', "must be read_only, idempotent, irreversible or forbidden"),
        ('[[tool]]\ntool = "a"\ntimeout = 5', "must be a duration such as 250ms, 30s, 10m, 1h or 7d"),
        ('[[tool]]\ntool = "a"\ntimeout = "8d"', "must be at most 7d"),
        ('[[tool]]\ntool = "a"\nattempts = 0', "Input should be greater than or equal to 1"),
        ('[[tool]]\ntool = "a"\nattempts = true', "Input should be a valid integer"),
        ('[[tool]]\ntool = "a"\nresult_bytes = 65537', "Input should be less than or equal to 65536"),
        ('[[tool]]\ntool = "a"\nagents = "clerk"', "catalogue.toml:3: tool.0.agents: Input should be a valid list"),
        ('[[server]]\nmcp = "stdio"', "catalogue.toml:1: server.0.name: Field required"),
        ('[[server]]\nname = "a_b"\nmcp = "stdio"', "catalogue.toml:2: server.0.name: String should match pattern"),
        ('[[server]]\nname = "python"\nmcp = "stdio"', "server python: name stands for other tools already"),
        ('[[server]]\nname = "a"', "catalogue.toml:2: server a: name needs one of mcp and grpc beside it"),
        ('[[server]]\nname = "a"\nmcp = "stdio"\ngrpc = "b:1"', "catalogue.toml:4: server a: grpc needs one of"),
        (
            '[[server]]\nname = "a"\nmcp = "stdio"\n[[server]]\nname = "a"\nmcp = "http"',
            "catalogue.toml:5: server a: name is that of a server before",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(BadFile) as refused:
        read(text)
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"There is no file .*; --catalogue names a TOML file"):
        catalogue.load(tmp_path / "none.toml")
    assert catalogue.load(None) == Catalogue()


@pytest.mark.parametrize("own", list(ToolClass))
@pytest.mark.parametrize("stated", list(ToolClass))
@pytest.mark.parametrize("spec", [OURS, THEIRS])
def test_the_strictest_class_counts(own: ToolClass, stated: ToolClass, spec: ToolSpec) -> None:
    read_file = read(f'{FULL.split("[[tool]]", maxsplit=1)[0]}[[tool]]\ntool = "*"\nclass = "{stated.lower()}"')
    result = read_file.stated(replace(spec, tool_class=own))
    assert result is not None
    order = list(ToolClass)
    assert result[0].tool_class is max(own, stated, key=order.index)
    assert not result[0].asks


def test_a_servers_tool_without_a_class_is_irreversible_and_asks() -> None:
    read_file = read(FULL)
    result = read_file.stated(replace(THEIRS, name="time__convert"))
    assert result is not None
    assert (result[0].tool_class, result[0].asks, result[0].trusted_output) == (ToolClass.IRREVERSIBLE, True, False)


def test_a_servers_tool_that_no_entry_covers_is_not_called() -> None:
    servers = FULL.split("[[tool]]", maxsplit=1)[0]
    assert read(servers).stated(THEIRS) is None
    assert read(servers).stated(OURS) == (OURS, catalogue.UNLISTED)


def test_a_question_of_a_tools_own_stays() -> None:
    result = read('[[tool]]\ntool = "send"\nclass = "read_only"').stated(replace(OURS, asks=True))
    assert result is not None
    assert (result[0].asks, result[0].tool_class) == (True, ToolClass.IDEMPOTENT)


@pytest.mark.parametrize(
    ("spec", "stated", "trusted"),
    [
        (replace(OURS, trusted_output=True), None, True),
        (replace(OURS, trusted_output=True), "false", False),
        (replace(OURS, trusted_output=False), "true", False),
        (replace(THEIRS, trusted_output=True), None, False),
        (replace(THEIRS, trusted_output=False), "true", True),
    ],
)
def test_only_the_operator_trusts_what_a_server_returns(spec: ToolSpec, stated: str | None, trusted: bool) -> None:
    line = f"trusted_output = {stated}" if stated else ""
    result = read(f'{FULL.split("[[tool]]", maxsplit=1)[0]}[[tool]]\ntool = "*"\n{line}').stated(spec)
    assert result is not None
    assert result[0].trusted_output is trusted


def test_the_shorter_time_counts() -> None:
    read_file = read('[[tool]]\ntool = "*"\ntimeout = "5s"')
    for own, result in ((None, 5), (timedelta(seconds=3), 3), (timedelta(seconds=9), 5)):
        stated = read_file.stated(replace(OURS, timeout=own))
        assert stated is not None
        assert stated[0].timeout == timedelta(seconds=result)
