"""Tools that do what no tool should: each raises, prints, or takes its server's event loop for its own."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, NoReturn

import pydantic

from turnkeeper.tools import ToolClass, ToolError, tool

SECRET = "canary-5b1f"
SERVING = "turnkeeper: serving on 127.0.0.1:1"


class Panic(BaseException):
    """As a Rust library raises it: no Exception."""


class Mute(ToolError):
    def __str__(self) -> str:
        raise KeyboardInterrupt(SECRET)


RAISED: Mapping[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": lambda: KeyboardInterrupt(SECRET),
    "SystemExit": lambda: SystemExit(SECRET),
    "GeneratorExit": lambda: GeneratorExit(SECRET),
    "CancelledError": lambda: asyncio.CancelledError(SECRET),
    "Panic": lambda: Panic(SECRET),
    "Mute": lambda: Mute(SECRET),
}
SEAMS = ("in_loop", "in_thread", "in_result", "in_arguments")


def fail(how: str) -> NoReturn:
    error = RAISED[how]()
    raise error


class Result(pydantic.BaseModel):
    how: str

    @pydantic.model_serializer
    def write(self) -> str:
        fail(self.how)


@tool(tool_class=ToolClass.READ_ONLY)
async def in_loop(how: str) -> None:
    fail(how)


@tool(tool_class=ToolClass.READ_ONLY)
def in_thread(how: str) -> None:
    fail(how)


@tool(tool_class=ToolClass.READ_ONLY)
async def in_result(how: str) -> Result:
    return Result(how=how)


@tool(tool_class=ToolClass.READ_ONLY)
def in_arguments(how: Annotated[str, pydantic.BeforeValidator(fail)]) -> None:
    """Never gets as far as this."""


@tool(tool_class=ToolClass.READ_ONLY)
async def exit_in_a_task() -> None:
    async def leave() -> None:
        sys.exit(SECRET)

    await asyncio.create_task(leave())


@tool(tool_class=ToolClass.READ_ONLY)
def die_in_a_thread() -> str:
    thread = threading.Thread(target=fail, args=("Panic",))
    thread.start()
    thread.join()
    return "the thread has ended"


@tool(tool_class=ToolClass.READ_ONLY)
async def swallow_cancellations() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


@tool(tool_class=ToolClass.READ_ONLY)
def print_the_line() -> str:
    print(SERVING)
    os.write(1, f"{SERVING}\n".encode())
    subprocess.run(["echo", SERVING], check=True)
    return "printed"


@tool(tool_class=ToolClass.READ_ONLY)
def close_the_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)
    return "closed"
