"""Tools in three lines: `@tool` alone, and a Python file that needs no package."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.builders import AGENT, a_call, a_session_key
from turnkeeper.domain.policy import PolicyRule, usual_ruling
from turnkeeper.domain.tool import CallState, PolicyAction, ToolClass, ToolOutcome
from turnkeeper.errors import AgentConfigError
from turnkeeper.tools import tool, tools_file
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

THREE_LINES = """\
from turnkeeper.tools import tool, ToolError
@tool
def refund(order: str, cents: int) -> str: return f"{cents} for {order}"
"""


@pytest.fixture(autouse=True)
def path_of_modules() -> Iterator[None]:
    before, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], PythonTools]:
    def load(text: str) -> PythonTools:
        file = tmp_path / "desk.py"
        file.write_text(text, encoding="utf-8")
        return PythonTools(tools_file.load(file))

    return load


async def run(box: Toolbox, name: str, **arguments: object) -> tuple[ToolOutcome, object]:
    call = a_call(
        a_session_key(session_id="s"),
        tool=name,
        arguments_json=json.dumps(arguments),
        state=CallState.STARTED,
        key="key-1",
    )
    result = (await box.run(call)).result
    return result.outcome, json.loads(result.result_json)


async def test_a_tool_in_three_lines_is_irreversible_asks_and_runs(loaded: Callable[[str], PythonTools]) -> None:
    source = loaded(THREE_LINES)
    [spec] = source.specs()
    assert (spec.name, spec.tool_class, spec.asks) == ("refund", ToolClass.IRREVERSIBLE, True)
    assert json.loads(spec.schema_json)["required"] == ["order", "cents"]
    assert await run(Toolbox([source]), "refund", order="A-17", cents=5) == (ToolOutcome.OK, "5 for A-17")


@pytest.mark.parametrize("written", [PolicyAction.AUTO, PolicyAction.NOTIFY, PolicyAction.APPROVE])
@pytest.mark.parametrize(
    ("marked", "asks"),
    [
        (tool, True),
        (tool(approve=True, tool_class=ToolClass.READ_ONLY), True),
        (tool(approve=False), True),  # approve adds a question, and takes none away
        (tool(tool_class=ToolClass.IRREVERSIBLE), False),
        (tool(tool_class=ToolClass.READ_ONLY), False),
    ],
    ids=["alone", "approve", "approve=False", "IRREVERSIBLE", "READ_ONLY"],
)
def test_a_policy_cannot_take_a_tools_own_question_away(
    marked: Callable[[Callable[[], None]], Callable[[], None]], asks: bool, written: PolicyAction
) -> None:
    [spec] = PythonTools([marked(lambda_tool())]).specs()
    rule = PolicyRule(tool="act", action=written, ttl=timedelta(minutes=5))
    agent = replace(AGENT, tools=("act",), policy=(rule,))
    assert usual_ruling(agent.policy, spec).action is (PolicyAction.APPROVE if asks else written)
    assert usual_ruling(agent.policy, spec).ttl == timedelta(minutes=5), "the file still sets the time to decide"


def test_a_policy_can_deny_a_tool_that_asks() -> None:
    [spec] = PythonTools([tool(lambda_tool())]).specs()
    agent = replace(AGENT, tools=("act",), policy=(PolicyRule(tool="*", action=PolicyAction.DENY),))
    assert usual_ruling(agent.policy, spec).action is PolicyAction.DENY


def lambda_tool() -> Callable[[], None]:
    def act() -> None:
        """Act."""

    return act


def test_a_tool_that_begins_to_ask_is_another_one_than_what_was_decided_on() -> None:
    [calm] = PythonTools([tool(tool_class=ToolClass.READ_ONLY)(lambda_tool())]).specs()
    [asking] = PythonTools([tool(tool_class=ToolClass.READ_ONLY, approve=True)(lambda_tool())]).specs()
    assert usual_ruling((), calm).rule_text != usual_ruling((), asking).rule_text


def test_the_shorter_of_the_tools_and_the_agents_time_counts() -> None:
    box = Toolbox([PythonTools([tool(timeout=2.5)(lambda_tool())])])
    assert box.time_of("act", at_most=timedelta(seconds=30)) == timedelta(seconds=2.5)
    assert box.time_of("act", at_most=timedelta(seconds=1)) == timedelta(seconds=1)
    assert box.time_of("gone", at_most=timedelta(seconds=30)) == timedelta(seconds=30)


@pytest.mark.parametrize("timeout", [0, -1, timedelta(days=8)])
def test_a_timeout_that_cannot_be_is_refused(timeout: float | timedelta) -> None:
    with pytest.raises(ValueError, match="must be above 0, and at most 7 days"):
        tool(timeout=timeout)


async def test_a_coroutine_function_gets_its_context_by_the_annotation_alone(
    loaded: Callable[[str], PythonTools],
) -> None:
    source = loaded(
        "from __future__ import annotations\n"
        "from turnkeeper.tools import ToolContext, ToolError, tool\n"
        "@tool(timeout=5)\n"
        "async def look(word: str, what_it_knows: ToolContext) -> str:\n"
        "    if word == 'nothing': raise ToolError('Name a thing.')\n"
        "    return f'{word} under {what_it_knows.key}'\n"
    )
    [spec] = source.specs()
    assert list(json.loads(spec.schema_json)["properties"]) == ["word"]
    assert await run(Toolbox([source]), "look", word="x") == (ToolOutcome.OK, "x under key-1")
    assert await run(Toolbox([source]), "look", word="nothing") == (ToolOutcome.FAILED, {"error": "Name a thing."})


async def test_modules_beside_the_file_can_be_imported_and_shadow_nothing(
    tmp_path: Path, loaded: Callable[[str], PythonTools]
) -> None:
    (tmp_path / "prices_of_this_test.py").write_text("PRICE = 7\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('not the one that was meant')\n")
    source = loaded(
        "import json\nfrom prices_of_this_test import PRICE\nfrom turnkeeper.tools import tool\n"
        "@tool\ndef price() -> int: return PRICE + json.loads('1')\n"
    )
    assert await run(Toolbox([source]), "price") == (ToolOutcome.OK, 8)


def test_a_sample_gives_way_to_the_files_tool_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "desk.py"
    file.write_text(THREE_LINES.replace("refund", "add"))
    specs = {spec.name: spec for spec in PythonTools(tools_file.with_installed(file)).specs()}
    assert specs["add"].asks
    assert not specs["send_message"].asks
    assert "refund" not in {spec.name for spec in PythonTools(tools_file.with_installed(None)).specs()}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"def refund(:\n", "desk.py:1: this is not Python: invalid syntax."),
        (b"\n\n  x = 1\n", "desk.py:3: this is not Python: unexpected indent."),
        (b"x = '\xff'\n", "desk.py:1: this is not Python:"),
        (b"x = 1\0\n", "desk.py: this is not Python: source code string cannot contain null bytes."),
        (b"import math\n\nmath.sqrt(-1)\n", "desk.py:3: the file cannot be loaded: ValueError:"),
        (b"import no_such_package\n", "desk.py:1: the file cannot be loaded: ModuleNotFoundError: No module named"),
        (b"\nraise SystemExit(3)\n", "desk.py:2: the file cannot be loaded: SystemExit: 3."),
        (b"def f(): f()\nf()\n", "desk.py:1: the file cannot be loaded: RecursionError"),
        (b"", "desk.py: there is no tool: mark a function with @tool"),
        (b"def refund() -> None: ...\n", "desk.py: there is no tool: mark a function with @tool"),
        (
            b"from turnkeeper.tools import tool\n\n@tool\ndef pay(x: 'Nothing'): ...\n",
            "desk.py:3: The tool pay cannot be described: name 'Nothing' is not defined",
        ),
        (
            b"from turnkeeper.tools import tool\n@tool\ndef a(*x): ...\n",
            "desk.py:2: The tool a cannot be described: every parameter needs a name",
        ),
        (
            b"from turnkeeper.tools import tool\n@tool\ndef a(): ...\n@tool(name='a')\ndef b(): ...\n",
            "desk.py:4: Two tools are named a; rename one.",
        ),
        (
            b"from turnkeeper.tools import tool\n@tool(name='pay back')\ndef a(): ...\n",
            "desk.py:2: A tool is named 'pay back'; a name must match",
        ),
        (
            b"from turnkeeper.tools import tool\n\n\n@tool(timeout=-1)\ndef a(): ...\n",
            "desk.py:4: the file cannot be loaded: ValueError: timeout is",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_with_file_and_line(tmp_path: Path, text: bytes, complaint: str) -> None:
    file = tmp_path / "desk.py"
    file.write_bytes(text)
    with pytest.raises(AgentConfigError) as raised:
        PythonTools(tools_file.load(file))
    assert raised.value.message.startswith(f"{tmp_path}/{complaint}")
    assert "\n" not in raised.value.message


def test_a_file_that_is_not_there_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentConfigError, match=r"There is no file .*desk\.py; --tools names a Python file"):
        tools_file.load(tmp_path / "desk.py")
    with pytest.raises(AgentConfigError, match=r"cannot be read: Is a directory"):
        tools_file.load(tmp_path)
    with (tmp_path / "long.py").open("wb") as file:
        file.truncate(tools_file.MAX_BYTES + 1)
    with pytest.raises(AgentConfigError, match=r"has more than 4,194,304 bytes"):
        tools_file.load(tmp_path / "long.py")


async def test_a_call_that_runs_finishes_on_the_old_code_and_the_next_runs_the_new() -> None:
    began, go_on = threading.Event(), threading.Event()

    def act() -> str:
        began.set()
        assert go_on.wait(10)
        return "old"

    def act_anew(count: int = 1) -> str:
        return f"new {count}"

    source = PythonTools([tool(act)])
    box = Toolbox([source])
    first = asyncio.create_task(run(box, "act"))
    assert await asyncio.to_thread(began.wait, 10)
    source.replace([tool(name="act")(act_anew)])
    assert await run(box, "act", count=2) == (ToolOutcome.OK, "new 2")
    go_on.set()
    assert await first == (ToolOutcome.OK, "old")


async def test_a_call_whose_tool_went_after_its_start_is_a_failed_result() -> None:
    source = PythonTools([tool(lambda_tool())])
    box = Toolbox([source])
    source.replace([])
    assert await run(box, "act") == (ToolOutcome.FAILED, {"error": "The tool is gone; it did not run."})
    assert box.source_of("act") == ""


def test_tools_that_cannot_be_replaced_leave_the_old_ones() -> None:
    source = PythonTools([tool(lambda_tool())])
    with pytest.raises(AgentConfigError):
        source.replace([tool(lambda_tool()), tool(lambda_tool())])
    assert [spec.name for spec in source.specs()] == ["act"]
