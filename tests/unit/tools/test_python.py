"""Python functions as tools: the signature is the schema, the docstring the description."""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Annotated, Any

import pydantic
import pytest

from tests.builders import AGENT, a_call, a_session_key
from turnkeeper.domain import tool as domain_tool
from turnkeeper.domain.tool import CallState, ToolOutcome
from turnkeeper.errors import AgentConfigError, ToolValidationError
from turnkeeper.tools import ToolClass, ToolContext, ToolError, contract, python, samples, tool
from turnkeeper.tools.python import PythonTools, installed
from turnkeeper.tools.toolbox import Toolbox

CONTEXT = ToolContext(key="key-1", tenant="default", session_id="s", turn_id="t", tool_call_id="c")


class Unit(StrEnum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


@dataclass
class Place:
    city: str
    days: int = 1


@tool(tool_class=ToolClass.READ_ONLY)
async def search_weather(
    place: Place,
    unit: Unit = Unit.CELSIUS,
    note: Annotated[str, pydantic.Field(description="Anything else.")] = "",
    *,
    context: ToolContext,
) -> dict[str, object]:
    """Look up the weather.

    Only for places that exist.
    """
    assert isinstance(place, Place)
    assert isinstance(unit, Unit)
    return {"city": place.city, "unit": unit, "note": note, "key": context.key, "at": datetime(2026, 1, 2, tzinfo=UTC)}


@tool(tool_class=ToolClass.IDEMPOTENT, name="search_thread")
def named_otherwise() -> bool:
    return threading.current_thread() is threading.main_thread()


@tool(tool_class=ToolClass.READ_ONLY)
def search_nothing() -> None:
    """Find nothing."""


@tool(tool_class=ToolClass.IRREVERSIBLE)
def search_and_fail(how: str) -> object:
    """Fail."""
    match how:
        case "tool error":
            raise ToolError("There is no such page.")
        case "another error":
            raise RuntimeError("the password is hunter2")
        case "number":
            return float("nan")
        case "object":
            return object()
        case "half":
            return "\ud800"
        case "endless":
            return itertools.count()
        case "many":
            return [1] * 5_000_000
        case _:
            return "x" * 70_000


@tool(tool_class=ToolClass.READ_ONLY)
async def search_for_ever() -> None:
    """Never come back."""
    await asyncio.sleep(60)


def by_place(word: str, /) -> None:
    """Its caller names what it gives."""


def takes_a_lock(lock: threading.Event) -> None:
    """No JSON is one."""


def takes_what_is_gone(thing: "NoSuchType") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Its annotation is a mistake."""


@tool(tool_class=ToolClass.READ_ONLY)
def search_by_odd_names(model_name: str, count: int = 1) -> str:
    """Take names that pydantic keeps for itself."""
    return f"{model_name} {count}"


TOOLS = (search_weather, named_otherwise, search_nothing, search_and_fail, search_for_ever, search_by_odd_names)
SOURCE = PythonTools(TOOLS)
BOX = Toolbox([SOURCE])
SPECS = {spec.name: spec for spec in SOURCE.specs()}


async def run(name: str, arguments: str = "{}") -> tuple[ToolOutcome, Any]:
    call = a_call(
        a_session_key(session_id="s"), tool=name, arguments_json=arguments, state=CallState.STARTED, key="key-1"
    )
    finished = await BOX.run(call)
    assert finished.duration >= timedelta()
    return finished.result.outcome, json.loads(finished.result.result_json)


def test_the_public_names_are_those_of_the_modules_that_define_them() -> None:
    assert (tool, ToolClass) == (python.tool, domain_tool.ToolClass)
    assert (ToolContext, ToolError) == (contract.ToolContext, contract.ToolError)


def test_the_signature_is_the_schema() -> None:
    schema = json.loads(SPECS["search_weather"].schema_json)
    assert set(schema["properties"]) == {"place", "unit", "note"}, "the context is filled in, no argument"
    assert schema["required"] == ["place"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["note"]["description"] == "Anything else."
    assert schema["$defs"]["Unit"]["enum"] == ["celsius", "fahrenheit"]
    assert schema["$defs"]["Place"]["required"] == ["city"]


def test_the_docstring_is_the_description_and_without_one_the_name_is() -> None:
    assert SPECS["search_weather"].description == "Look up the weather.\n\nOnly for places that exist."
    assert SPECS["search_thread"].description == "search_thread"


def test_the_class_is_the_one_that_the_decorator_names() -> None:
    assert {name: spec.tool_class for name, spec in SPECS.items()} == {
        "search_weather": ToolClass.READ_ONLY,
        "search_thread": ToolClass.IDEMPOTENT,
        "search_nothing": ToolClass.READ_ONLY,
        "search_and_fail": ToolClass.IRREVERSIBLE,
        "search_for_ever": ToolClass.READ_ONLY,
        "search_by_odd_names": ToolClass.READ_ONLY,
    }


def test_the_schema_is_the_same_text_in_every_process() -> None:
    assert PythonTools(TOOLS).specs() == SOURCE.specs()


async def test_arguments_arrive_as_the_types_of_the_signature() -> None:
    outcome, result = await run("search_weather", '{"place": {"city": "Bonn"}, "unit": "fahrenheit"}')
    assert outcome is ToolOutcome.OK
    assert result == {
        "city": "Bonn",
        "unit": "fahrenheit",
        "note": "",
        "key": "key-1",
        "at": "2026-01-02T00:00:00Z",
    }


async def test_a_plain_function_runs_in_a_thread_and_nothing_is_a_result() -> None:
    assert await run("search_thread") == (ToolOutcome.OK, False)
    assert await run("search_nothing") == (ToolOutcome.OK, None)
    assert await run("search_by_odd_names", '{"model_name": "a"}') == (ToolOutcome.OK, "a 1")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("tool error", "There is no such page."),
        ("another error", "The tool failed (RuntimeError)."),
        ("number", "The tool returned something that JSON cannot hold."),
        ("object", "The tool failed (PydanticSerializationError)."),
        ("half", "The tool returned something that JSON cannot hold."),
        ("endless", "The tool returned something that JSON cannot hold."),
        ("many", "The result has more than 65536 bytes; at most 65536 are passed on. Ask for less."),
        ("long", "The result has 70002 bytes; at most 65536 are passed on. Ask for less."),
    ],
)
async def test_a_failure_is_a_result_without_the_text_of_an_unexpected_error(how: str, message: str) -> None:
    assert await run("search_and_fail", json.dumps({"how": how})) == (ToolOutcome.FAILED, {"error": message})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("{}", "'place' is a required property"),
        ('{"place": {"city": 5}}', "place/city: 5 is not of type 'string'"),
        ('{"place": {"city": "Bonn"}, "unit": "kelvin"}', "unit: 'kelvin' is not one of"),
        ('{"place": {"city": "Bonn"}, "context": {}}', "Additional properties are not allowed"),
        ('{"place"', "The arguments are not JSON"),
        ("[" * 10_000, "The arguments are not JSON"),
        (json.dumps({"place": {"city": "x" * 70_000}}), "The arguments are over 65536 bytes"),
        (json.dumps({"place": {"city": "\x7f" * 12_000}}), "The arguments are over 65536 bytes"),
        ('{"place": ' + "[" * 64 + "]" * 64 + "}", "the text is nested deeper than 64 levels"),
        ('{"place": ' + "1" * 400 + "}", "the text has a number that is too large"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_a_message_for_the_model(arguments: str, complaint: str) -> None:
    with pytest.raises(ToolValidationError) as raised:
        BOX.check(SPECS["search_weather"], arguments)
    assert complaint in raised.value.message


@pytest.mark.parametrize("arguments", ["", "{}", " {}\n"])
def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    assert BOX.check(SPECS["search_nothing"], arguments) == "{}"


def test_an_agent_has_only_the_tools_that_it_names() -> None:
    assert [spec.name for spec in BOX.offered(AGENT)] == sorted(SPECS)
    assert BOX.find(AGENT, "search_weather") == SPECS["search_weather"]
    assert Toolbox([PythonTools([samples.add])]).find(AGENT, "add") is None
    assert BOX.find(AGENT, "search_what_is_not_there") is None


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(AgentConfigError, match="Two tools are named search_nothing"):
        PythonTools([search_nothing, search_nothing])
    with pytest.raises(AgentConfigError, match="Two sources have a tool named"):
        Toolbox([SOURCE, PythonTools([search_nothing])])


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (tool(tool_class=ToolClass.READ_ONLY)(lambda *words: words), "lambda"),
        (tool(tool_class=ToolClass.READ_ONLY)(lambda **words: words), "lambda"),
        (tool(tool_class=ToolClass.READ_ONLY, name="find it")(lambda: None), "find it"),
        (tool(tool_class=ToolClass.READ_ONLY, name="x" * 65)(lambda: None), "xxx"),
        (tool(tool_class=ToolClass.READ_ONLY, name="under")(lambda _secret: None), "under"),
        (tool(tool_class=ToolClass.READ_ONLY, name="place")(by_place), "place"),
        (tool(tool_class=ToolClass.READ_ONLY, name="odd")(takes_a_lock), "odd"),
        (tool(tool_class=ToolClass.READ_ONLY, name="gone")(takes_what_is_gone), "gone"),
    ],
    ids=[
        "any number of values",
        "any keywords",
        "a space in the name",
        "a long name",
        "an underscore",
        "by place alone",
        "a type that JSON cannot hold",
        "a type that is not there",
    ],
)
def test_a_function_that_cannot_be_described_is_named(function: Callable[..., object], complaint: str) -> None:
    with pytest.raises(AgentConfigError, match=complaint):
        PythonTools([function])


def entries(monkeypatch: pytest.MonkeyPatch, **loaded: object) -> None:
    """Entry points that load these; an exception is raised instead."""

    class Entry(EntryPoint):
        def load(self) -> Any:
            value = loaded[self.name]
            if isinstance(value, BaseException):
                raise value
            return value

    entry_points = EntryPoints(Entry(name=name, value=f"package.{name}", group=python.GROUP) for name in loaded)
    monkeypatch.setattr(python, "entry_points", lambda group: entry_points.select(group=group))


def test_entry_points_name_modules_or_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("package.many")
    vars(module).update(search=search_nothing, helper=lambda: None, SETTING=5)
    entries(monkeypatch, many=module, another=search_weather)
    assert installed() == [search_weather, search_nothing]


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        (ImportError("no module named nothing"), "entry point mine (package.mine) cannot be loaded: no module"),
        (SystemExit(), "cannot be loaded: SystemExit (repair its package, or uninstall it)"),
        (5, "Entry point mine names neither a module nor a function marked with @tool"),
        (len, "Entry point mine names neither a module nor a function marked with @tool"),
    ],
)
def test_a_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch, loaded: object, complaint: str) -> None:
    entries(monkeypatch, mine=loaded)
    with pytest.raises(AgentConfigError) as raised:
        installed()
    assert complaint in raised.value.message


def test_the_samples_are_installed() -> None:
    names = {spec.name for spec in PythonTools(installed()).specs()}
    assert {"current_time", "add", "write_note", "send_message"} <= names
