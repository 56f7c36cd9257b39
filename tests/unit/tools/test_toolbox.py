"""The toolbox: whose tools an agent is offered, and what becomes of them when a server's list changes."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import AGENT, a_call, a_session_key
from tests.unit.tools.servers import LocalServer
from turnkeeper.domain.tool import CallState, ClientTool, ReconciledState, ToolClass, ToolOutcome
from turnkeeper.errors import AgentConfigError
from turnkeeper.tools import catalogue, tool
from turnkeeper.tools.catalogue import Catalogue
from turnkeeper.tools.contract import Reconciled, ToolContext
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

CLERK = replace(AGENT, name="clerk", tools=("*",))
SERVERS = '[[server]]\nname = "time"\nmcp = "stdio"\n[[server]]\nname = "git"\nmcp = "stdio"\n'
ALL = SERVERS + '[[tool]]\ntool = "*"\nclass = "read_only"\n'


@tool(tool_class=ToolClass.READ_ONLY)
def time__now() -> str:
    """Tells the time."""
    return "noon"


@tool(tool_class=ToolClass.READ_ONLY)
def echo(text: str) -> str:
    """Returns the text."""
    return text


def read(text: str) -> Catalogue:
    return catalogue.parse(Path("catalogue.toml"), text.encode())


def a_box(text: str = ALL, *functions: Callable[..., object]) -> tuple[Toolbox, LocalServer, LocalServer]:
    """Returns a toolbox with some Python tools and two servers that have not listed anything yet."""
    content = read(text)
    time, git = (LocalServer(server) for server in content.servers)
    return Toolbox([PythonTools(functions or [echo]), time, git], catalogue=content), time, git


def names(box: Toolbox) -> list[str]:
    return [spec.name for spec in box.offered(CLERK)]


def test_a_list_that_changes_counts_at_the_next_model_call() -> None:
    box, time, git = a_box()
    assert names(box) == ["echo"]
    assert list(box.listing.unreachable) == [time, git]
    time.offer("now", "convert.zone")
    git.offer()
    assert len(box.names) == 3
    assert not box.listing.unreachable
    mapped = box.offered(CLERK)[1]
    assert names(box) == ["echo", mapped.name, "time__now"]
    time.offer("now")
    assert names(box) == ["echo", "time__now"]
    assert box.find(CLERK, mapped.name) is None
    time.offer("now", description="Another one.")
    spec = box.find(CLERK, "time__now")
    assert spec is not None
    assert spec.description == "Another one."


def test_the_tools_of_an_agents_version_are_the_same_object_until_a_source_changes() -> None:
    box, time, _ = a_box()
    offered = box.offered(CLERK)
    assert box.offered(CLERK) is offered
    assert box.offered(replace(CLERK, tools=("e*",))) is not offered
    assert box.offered(CLERK) is offered
    time.offer("now")
    assert box.offered(CLERK) is not offered


def test_a_clients_tool_takes_the_place_of_a_servers() -> None:
    box, time, _ = a_box()
    time.offer("now")
    theirs = ClientTool(name="time__now", description="Mine.", schema_json="{}")
    assert [spec.description for spec in box.offered(CLERK, clients=[theirs])] == ["Returns the text.", "Mine."]


def test_a_servers_tools_are_offered_only_where_the_catalogue_lists_them() -> None:
    box, time, git = a_box(SERVERS + '[[tool]]\ntool = "time__n*"\nclass = "read_only"\nagents = ["desk"]\n')
    time.offer("now", "convert")
    git.offer("log")
    assert names(box) == ["echo"]
    assert box.listing.unlisted == {"time__convert", "git__log"}
    desk = replace(CLERK, name="desk")
    assert [spec.name for spec in box.offered(desk)] == ["echo", "time__now"]
    assert box.find(CLERK, "time__now") is None
    assert box.find(desk, "time__now") is not None


def test_a_forbidden_tool_is_not_offered() -> None:
    box, _, _ = a_box(SERVERS + '[[tool]]\ntool = "echo"\nclass = "forbidden"\n')
    assert names(box) == []
    assert box.find(CLERK, "echo") is None


def test_two_tools_of_one_name_refuse_the_start() -> None:
    box, time, _ = a_box(ALL, echo, time__now)
    time.offer("now")
    with pytest.raises(AgentConfigError, match="Two sources have a tool named time__now, python and time; rename one"):
        box.reload(box.listing.sources, catalogue=box.listing.catalogue)
    with pytest.raises(AgentConfigError, match="Two sources have a tool named time__now"):
        Toolbox(box.listing.sources, catalogue=box.listing.catalogue)


def test_a_list_that_changes_takes_no_other_tools_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    box, time, _ = a_box(ALL, echo, time__now)
    assert names(box) == ["echo", "time__now"]
    time.offer("now", "zone")
    assert names(box) == ["echo", "time__now", "time__zone"]
    assert box.listing.tools["time__now"].spec.source == "python"
    assert box.listing.refused == {"time__now": "Two sources have a tool named time__now, python and time"}
    time.offer("now", "zone", "day")
    assert len(names(box)) == 4
    assert caplog.text.count("the newer one is not offered") == 1


def test_the_one_that_had_the_name_keeps_it_whatever_its_place() -> None:
    box, time, git = a_box()
    git.offer("log")
    assert "git__log" in names(box)
    time.offer("x")
    time._listed = [replace(box.listing.tools["git__log"].spec, source="time")]  # noqa: SLF001 - no name of ours
    time.listing += 1
    assert box.listing.tools["git__log"].source is git


def test_a_server_with_two_tools_of_one_name_has_the_first(caplog: pytest.LogCaptureFixture) -> None:
    box, time, _ = a_box()
    time.offer("now", "now")
    assert names(box) == ["echo", "time__now"]
    assert "time has two tools named time__now: the newer one is not offered" in caplog.text
    box.reload(box.listing.sources, catalogue=box.listing.catalogue)


async def test_a_call_of_a_tool_that_has_vanished_fails_with_words() -> None:
    box, time, _ = a_box()
    time.offer("now")
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, started=True)
    assert (await box.run(call)).result.result_json == '"time__now"'
    time.offer()
    finished = await box.run(call)
    assert (finished.result.outcome, finished.result.result_json) == (
        ToolOutcome.FAILED,
        '{"error": "The tool is gone; it did not run."}',
    )


async def test_a_call_does_not_run_at_another_source_than_was_approved() -> None:
    box, time, _ = a_box()
    time.offer("now")
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, source="git")
    assert (await box.run(call)).result.outcome is ToolOutcome.FAILED
    assert (await box.run(replace(call, source="time"))).result.outcome is ToolOutcome.OK


async def test_a_result_over_the_entrys_cap_fails_with_words() -> None:
    box, time, _ = a_box(SERVERS + '[[tool]]\ntool = "*"\nresult_bytes = 10\n')
    time.offer("now")
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, started=True)
    time.answer = lambda _name, _arguments: '"12345678"'
    assert (await box.run(call)).result.outcome is ToolOutcome.OK
    time.answer = lambda _name, _arguments: '"123456789"'
    assert (await box.run(call)).result.result_json == '{"error": "The result has more than 10 bytes; ask for less."}'


def test_all_tools_that_an_entry_covers_share_its_room() -> None:
    box, time, git = a_box(SERVERS + '[[tool]]\ntool = "time__*"\nconcurrency = 2\n[[tool]]\ntool = "*"\n')
    time.offer("now", "zone")
    git.offer("log")
    room = box.room_of("time__now")
    assert room is not None
    assert box.room_of("time__zone") is room
    assert (box.room_of("git__log"), box.room_of("gone")) == (None, None)


class Telling(LocalServer):
    """A server that also tells what became of a call."""

    ending = Reconciled(state=ReconciledState.DONE, result_json='"12345678"')

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled:
        return self.ending


async def test_what_a_server_tells_later_has_the_entrys_cap_too() -> None:
    content = read(SERVERS + '[[tool]]\ntool = "*"\nresult_bytes = 10\n')
    time = Telling(content.servers[0])
    time.offer("now")
    box = Toolbox([time], catalogue=content)
    call = a_call(a_session_key(), tool="time__now", arguments_json="{}", state=CallState.STARTED, source="time")
    assert await box.reconcile(call) == time.ending
    time.ending = replace(time.ending, result_json='"123456789"')
    words = '{"error": "The result has more than 10 bytes; ask for less."}'
    failed = Reconciled(state=ReconciledState.FAILED, result_json=words, took_effect=True)
    assert await box.reconcile(call) == failed
