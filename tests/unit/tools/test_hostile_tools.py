"""Whatever a tool raises, returns or does to its event loop is one failed call; the next call works."""

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import pydantic
import pytest

from tests.builders import a_call, a_session_key
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolSpec
from turnkeeper.tools import ToolClass, ToolContext, ToolError, tool
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

SECRET = "canary-71c4"
FLOOD = "The result has more than 65536 bytes; at most 65536 are passed on. Ask for less."
NO_JSON = "The tool returned something that JSON cannot hold."
TICK = 0.1
"""Seconds of CPU that the loop's thread may take for one call."""


class Panic(BaseException):
    """As a Rust library raises it: no Exception."""


class Mute(ToolError):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


class MuteExit(SystemExit):
    def __str__(self) -> str:
        raise KeyboardInterrupt(SECRET)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise Panic(SECRET)


class OfNoName(Exception, metaclass=Nameless):
    pass


RAISED: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": lambda: KeyboardInterrupt(SECRET),
    "SystemExit": lambda: SystemExit(SECRET),
    "GeneratorExit": lambda: GeneratorExit(SECRET),
    "CancelledError": lambda: asyncio.CancelledError(SECRET),
    "Panic": lambda: Panic(SECRET),
    "StopIteration": lambda: StopIteration(SECRET),
    "StopAsyncIteration": lambda: StopAsyncIteration(SECRET),
    "BaseExceptionGroup": lambda: BaseExceptionGroup(SECRET, [KeyboardInterrupt(SECRET)]),
    "Mute": lambda: Mute(SECRET),
    "MuteExit": lambda: MuteExit(SECRET),
    "OfNoName": lambda: OfNoName(SECRET),
    "MemoryError": lambda: MemoryError(SECRET),
    "LongName": lambda: type("LongName" * 100_000, (Exception,), {})(SECRET),
}
"""By the name of the class."""
SHOWN_AS = {"OfNoName": "BaseException", "LongName": ("LongName" * 13)[:100]}
"""Those whose class has no name that can be read, or too long a one."""


def fail(how: str) -> NoReturn:
    error = RAISED[how]()
    raise error


class Model(pydantic.BaseModel):
    how: str

    @pydantic.model_serializer
    def write(self) -> str:
        fail(self.how)


Checked = Annotated[str, pydantic.BeforeValidator(fail)]
"""An argument whose check is the tool author's code."""


@dataclass
class Many:
    items: list[int]


@tool(tool_class=ToolClass.READ_ONLY)
async def raise_in_loop(how: str) -> None:
    fail(how)


@tool(tool_class=ToolClass.READ_ONLY)
def raise_in_thread(how: str) -> None:
    fail(how)


@tool(tool_class=ToolClass.READ_ONLY)
async def return_from_loop(how: str) -> object:
    return Model(how=how)


@tool(tool_class=ToolClass.READ_ONLY)
def return_from_thread(how: str) -> object:
    return Model(how=how)


@tool(tool_class=ToolClass.READ_ONLY)
async def check_in_loop(how: Checked) -> None:
    """Never gets as far as this."""


@tool(tool_class=ToolClass.READ_ONLY)
def check_in_thread(how: Checked) -> None:
    """Never gets as far as this."""


@tool(tool_class=ToolClass.READ_ONLY)
async def exit_in_a_task() -> None:
    async def leave() -> None:
        sys.exit(SECRET)

    await asyncio.create_task(leave())


@tool(tool_class=ToolClass.READ_ONLY)
async def exit_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, SECRET)
    await asyncio.sleep(0.01)
    raise ToolError("still here")


@tool(tool_class=ToolClass.READ_ONLY)
async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    raise ToolError("still here")


@tool(tool_class=ToolClass.READ_ONLY)
async def close_the_loop() -> None:
    asyncio.get_running_loop().close()


@tool(tool_class=ToolClass.READ_ONLY)
async def cancel_everything() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60)


@tool(tool_class=ToolClass.READ_ONLY)
async def block_the_loop() -> float:
    time.sleep(0.3)  # noqa: ASYNC251
    return time.monotonic()


@tool(tool_class=ToolClass.READ_ONLY)
async def flood_from_loop(what: str) -> object:
    return FLOODS[what]()


@tool(tool_class=ToolClass.READ_ONLY)
def flood_from_thread(what: str) -> object:
    return FLOODS[what]()


@tool(tool_class=ToolClass.READ_ONLY)
async def answer() -> str:
    return threading.current_thread().name


@tool(tool_class=ToolClass.READ_ONLY)
def answer_in_thread() -> str:
    return "here"


NUMBERS = [7] * 2_000_000
FLOODS: dict[str, Callable[[], object]] = {
    "text": lambda: "x" * 100_000_000,
    "list": lambda: NUMBERS,
    "nested": lambda: {"a": {"b": [NUMBERS, {"c": NUMBERS}]}},
    "dataclass": lambda: Many(NUMBERS),
    "keys": lambda: dict.fromkeys(range(1_000_000)),
}

BOX = Toolbox(
    [
        PythonTools(
            [
                raise_in_loop,
                raise_in_thread,
                return_from_loop,
                return_from_thread,
                check_in_loop,
                check_in_thread,
                exit_in_a_task,
                exit_in_a_callback,
                stop_the_loop,
                close_the_loop,
                cancel_everything,
                block_the_loop,
                flood_from_loop,
                flood_from_thread,
                answer,
                answer_in_thread,
            ]
        )
    ]
)


async def outcome_of(name: str, *, box: Toolbox = BOX, **arguments: str) -> tuple[ToolOutcome, Any]:
    """Runs a call in a task of its own, as the runner does."""
    call = a_call(
        a_session_key(session_id="s"),
        tool=name,
        arguments_json=json.dumps(arguments),
        state=CallState.STARTED,
        started=True,
    )
    async with asyncio.timeout(10):
        finished = await asyncio.create_task(box.run(call))
    return finished.result.outcome, json.loads(finished.result.result_json)


async def the_next_calls_work() -> None:
    assert await outcome_of("answer") == (ToolOutcome.OK, "tools")
    assert await outcome_of("answer_in_thread") == (ToolOutcome.OK, "here")


@pytest.mark.parametrize("where", ["loop", "thread"])
@pytest.mark.parametrize("how", RAISED)
async def test_b1_whatever_a_tool_raises_is_one_failed_call(how: str, where: str) -> None:
    shown = SHOWN_AS.get(how, how)
    if (where, how) == ("loop", "StopIteration"):
        shown = "RuntimeError"  # Python's own rule: no coroutine raises it
    assert await outcome_of(f"raise_in_{where}", how=how) == (
        ToolOutcome.FAILED,
        {"error": f"The tool failed ({shown})."},
    )
    await the_next_calls_work()


@pytest.mark.parametrize("where", ["loop", "thread"])
@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SystemExit", "Panic", "Mute", "CancelledError"])
@pytest.mark.parametrize("seam", ["return_from", "check_in"])
async def test_b1_whatever_the_conversion_of_arguments_or_result_raises_is_one_failed_call(
    seam: str, how: str, where: str
) -> None:
    outcome, result = await outcome_of(f"{seam}_{where}", how=how)
    assert outcome is ToolOutcome.FAILED
    assert "The tool failed" in result["error"]
    assert SECRET not in result["error"]
    await the_next_calls_work()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("exit_in_a_task", "The tool failed (SystemExit)."),
        ("exit_in_a_callback", "still here"),
        ("stop_the_loop", "still here"),
        ("close_the_loop", "The tool failed (RuntimeError)."),
        ("cancel_everything", "The tool failed (CancelledError)."),
    ],
)
async def test_b1_what_a_tool_does_to_its_event_loop_ends_no_other_call(name: str, error: str) -> None:
    assert await outcome_of(name) == (ToolOutcome.FAILED, {"error": error})
    await the_next_calls_work()


async def test_a_tool_that_blocks_its_event_loop_does_not_block_the_servers() -> None:
    blocking = asyncio.create_task(outcome_of("block_the_loop"))
    ticks: list[float] = []
    while not blocking.done():
        ticks.append(time.monotonic())
        await asyncio.sleep(0.01)
    _, blocked_until = await blocking
    assert len([tick for tick in ticks if tick < blocked_until]) > 5


@pytest.mark.parametrize("where", ["loop", "thread"])
@pytest.mark.parametrize("what", FLOODS)
async def test_a_huge_result_is_refused_at_a_bounded_cost(what: str, where: str) -> None:
    before = time.thread_time()
    assert await outcome_of(f"flood_from_{where}", what=what) == (ToolOutcome.FAILED, {"error": FLOOD})
    assert time.thread_time() - before < TICK


class Broken:
    """A source that raises what it should have described."""

    listing = 1

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def specs(self) -> Sequence[ToolSpec]:
        return PythonTools([answer]).specs()

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        raise self._error


@pytest.mark.parametrize("how", RAISED)
async def test_b1_whatever_a_source_raises_is_one_failed_call(how: str) -> None:
    outcome, result = await outcome_of("answer", box=Toolbox([Broken(RAISED[how]())]))
    shown = "RuntimeError" if how == "StopIteration" else SHOWN_AS.get(how, how)
    assert (outcome, result) == (ToolOutcome.FAILED, {"error": f"The tool failed ({shown})."})


async def test_e4_a_raising_tool_is_logged_with_its_type_and_its_frames_and_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for where in ("loop", "thread"):
        caplog.clear()
        await outcome_of(f"raise_in_{where}", how="Panic")
        (record,) = [record for record in caplog.records if record.name.startswith("turnkeeper")]
        line = record.getMessage()
        assert record.levelno == logging.WARNING
        assert f"tool raise_in_{where} raised Panic ({__name__}:" in line
        assert f" raise_in_{where} > " in line
        assert f" > {__name__}:" in line, "each frame, the outermost first"
        assert " fail);" in line
        assert SECRET not in line
        assert (record.__dict__["session"], record.exc_info) == ("s", None)


async def test_e4_its_text_is_logged_with_the_record_of_content(caplog: pytest.LogCaptureFixture) -> None:
    box = Toolbox([PythonTools([raise_in_loop, raise_in_thread])], record_content=True)
    for where in ("loop", "thread"):
        caplog.clear()
        await outcome_of(f"raise_in_{where}", box=box, how="Panic")
        await outcome_of(f"raise_in_{where}", box=box, how="Mute")
        first, second = [record.getMessage() for record in caplog.records if record.name.startswith("turnkeeper")]
        assert f": {SECRET};" in first
        assert "raised Mute" in second


async def test_a_failure_with_a_message_for_the_model_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert await outcome_of("stop_the_loop") == (ToolOutcome.FAILED, {"error": "still here"})
    assert not caplog.records


async def test_the_message_of_a_failure_is_bounded_too() -> None:
    @tool(tool_class=ToolClass.READ_ONLY)
    def fail(text: str) -> None:
        raise ToolError("x" * 300_000 if text == "long" else "\ud83d")

    box = Toolbox([PythonTools([fail])])
    assert await outcome_of("fail", box=box, text="long") == (
        ToolOutcome.FAILED,
        {"error": FLOOD.replace("more than 65536", "300013")},
    )
    assert await outcome_of("fail", box=box, text="half") == (
        ToolOutcome.FAILED,
        {"error": NO_JSON},
    )
