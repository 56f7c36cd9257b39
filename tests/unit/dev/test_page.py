"""The first screen of `turnkeeper dev`: all of it fits, whatever the names and the size of the terminal."""

import html
import re
from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests.unit.docs.pages import ROOT
from turnkeeper import agents_file
from turnkeeper.dev.page import Facts, Line, lines
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.terminal.reader_shell import program
from turnkeeper.tools.python import PythonTools, installed
from turnkeeper.tools.toolbox import Toolbox

RULES = tuple(
    PolicyRule(tool=f"{action.value.lower()}_*", action=action, ttl=timedelta(hours=1)) for action in PolicyAction
)


def a_tool(name: str) -> ToolSpec:
    return ToolSpec(name=name, description="", schema_json="{}", tool_class=ToolClass.IDEMPOTENT, source="python")


def facts(agents: int, tools: Sequence[str], *, address: str = "127.0.0.1:50051") -> Facts:
    specs = [a_tool(name) for name in tools]
    values = [Agent(name=f"agent-{number}", model="m", tools=("*",), policy=RULES) for number in range(agents)]
    return Facts(
        address=address, agents=[(agent, specs) for agent in values], model="m", data=".turnkeeper", identity="none"
    )


def text(line: Line) -> str:
    return "".join(part if isinstance(part, str) else part[0] for part in line)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("height", [12, 24, 45])
@pytest.mark.parametrize("agents", [1, 3, 12, 1000])
@pytest.mark.parametrize("names", [1, 5, 60])
@pytest.mark.parametrize("length", [8, 64])
def test_the_page_fits_and_begins_and_ends_with_the_same_lines(
    width: int, height: int, agents: int, names: int, length: int
) -> None:
    tools = [f"{list(PolicyAction)[number % 4].value.lower()}_{number}".ljust(length, "x") for number in range(names)]
    page = [text(line) for line in lines(facts(agents, tools), width=width, height=height)]
    rows = sum(max(1, -(-len(line) // width)) for line in page)
    assert rows <= max(height - 1, 12), "\n".join(page)
    assert page[0].startswith("Turnkeeper serves on 127.0.0.1:50051")
    assert page[-1].endswith("turnkeeper sessions")
    assert [line for line in page if "turnkeeper" not in line and len(line) > width] == []


def test_what_does_not_fit_is_counted() -> None:
    tools = [f"auto_{number}_{'x' * 50}" for number in range(9)]
    page = "\n".join(text(line) for line in lines(facts(3, tools), width=80, height=24))
    hidden = [int(number) for number in re.findall(r"… and (\d+) more: ", page)]
    assert len(hidden) == 3
    assert page.count("auto_") + sum(hidden) == 27
    page = "\n".join(text(line) for line in lines(facts(30, ["auto_a"]), width=80, height=24))
    assert page.count("runs     auto_a") + int(page.partition("… and ")[2].partition(" more agents")[0]) == 30


def test_what_the_policy_does_stands_before_the_tools() -> None:
    page = [text(line) for line in lines(facts(1, ["auto_a", "notify_b", "approve_c", "deny_d"]), width=80, height=24)]
    assert page[1:5] == [
        "agent-0  runs     auto_a",
        "         notifies notify_b",
        "         asks     approve_c",
        "         denied   deny_d",
    ]


def test_no_name_moves_the_cursor() -> None:
    page = [text(line) for line in lines(facts(1, ["auto_\x1b[2J\u202e"]), width=80, height=24)]
    assert r"agent-0  runs     auto_\u001b[2J\u202e" in page


def test_the_recorded_terminal_of_the_readme_is_what_is_printed_now() -> None:
    """`make recording` makes it anew."""
    picture = (ROOT / "docs/terminal.svg").read_text(encoding="utf-8")
    recorded = html.unescape(re.sub(r"<[^>]+>", "", picture)).replace("\xa0", " ")
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    toolbox = Toolbox([PythonTools(installed())])
    agents = agents_file.load(agents_file.SAMPLES, default_model="m", toolbox=toolbox).values()
    shown = Facts(
        address="127.0.0.1:50051",
        agents=[(agent, toolbox.offered(agent)) for agent in agents],
        model="smollm2-135m-instruct, local; for agents with tools a script",
        data=".turnkeeper: the database, server.log",
        identity="none",
    )
    for line in lines(shown, width=80, height=24):
        assert "".join(text(line).replace(program(), "turnkeeper").split()) in "".join(recorded.split())
    for words in ("send_message waits for you → turnkeeper approve", "approved by default", "answered in"):
        assert "".join(words.split()) in "".join(recorded.split())
