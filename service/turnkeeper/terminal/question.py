"""Asks a person on the terminal. What was typed before the question was on the screen counts for nothing."""

import asyncio
import os
import sys
import termios
from collections.abc import Collection
from typing import Final

from turnkeeper.terminal.console import Output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed

_LONGEST: Final = 4096
"""Bytes of a line that a terminal takes."""


def can_ask(output: Output) -> bool:
    """Returns True if a person sees the output and can answer."""
    return output.is_terminal and sys.stdin is not None and sys.stdin.isatty()


async def ask_one_of(output: Output, question: str, answers: Collection[str]) -> tuple[str, str]:
    """Returns one of the answers, and what was written behind it on the line. Enter alone asks again: none is implied.

    An answer is its first letter or the whole word. Raises CommandFailed at the end of the input.
    """
    letters = {answer[:1]: answer for answer in answers}
    while True:
        line = await read_line(output, question)
        first, _, rest = line.strip().partition(" ")
        if first in answers or first in letters:
            return letters[first[:1]], rest.strip()
        output.show(f"Please answer {' or '.join(letters)}.")


async def read_line(output: Output, question: str) -> str:
    """Shows the question, throws away what was typed before, and returns the line that is typed now.

    The question's colon is shown last: from then on all that is typed counts. Raises CommandFailed at the end of the
    input.
    """
    output.show((question.removesuffix(":"), "bold"), end="")
    output.drain()
    forget_typed()
    descriptor = sys.stdin.fileno()
    output.show((":", "bold"), end=" ")
    await _readable(descriptor)
    line = os.read(descriptor, _LONGEST)
    if not line:
        raise CommandFailed("nothing was decided: the input has ended", ExitCode.WAITS)
    return line.decode("utf-8", "replace").rstrip("\n")


def forget_typed() -> None:
    """Throws away what was typed and not read yet."""
    termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


async def _readable(descriptor: int) -> None:
    """Waits until a line is there. The event loop goes on meanwhile, and Ctrl-C ends the wait."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
