"""Runs a program on a real pseudo-terminal, and reads its screen as a person would."""

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pyte

# Makes the terminal the program's own, so that Ctrl-C becomes a signal.
_LAUNCHER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
CTRL_C = "\x03"


class PseudoTerminal:
    """A program, the terminal that it runs on, and what is on the screen now."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, *, columns: int, rows: int) -> None:
        self.process = process
        self.raw = b""
        """All bytes that the program wrote."""
        self._master = master
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._changed = asyncio.Event()

    @property
    def lines(self) -> list[str]:
        """Returns the lines that are visible, without spaces at their ends."""
        return [line.rstrip() for line in self._screen.display]

    def row(self, number: int) -> list[pyte.screens.Char]:
        """Returns the characters of a visible line, with their colours."""
        return [self._screen.buffer[number][x] for x in range(self._screen.columns)]

    @property
    def text(self) -> str:
        """Returns all that was on the screen, also what has scrolled away."""
        above = ["".join(row[x].data for x in range(self._screen.columns)).rstrip() for row in self._screen.history.top]
        return "\n".join([*above, *self.lines])

    async def until(self, shown: str | Callable[[str], bool], *, timeout: float = 40) -> str:
        """Waits until the text is there, and returns all of it. Fails with the screen if it does not come.

        Spaces and new lines do not count in a text: the terminal may have folded a line anywhere.
        """
        holds = (lambda text: "".join(shown.split()) in "".join(text.split())) if isinstance(shown, str) else shown
        try:
            async with asyncio.timeout(timeout):
                while not holds(self.text):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not on the screen: {shown}\n{self.text.rstrip()}") from None
        return self.text

    def type(self, text: str) -> None:
        """Types on the keyboard; `\\r` is Enter."""
        os.write(self._master, text.encode())

    async def ended(self, *, timeout: float = 30) -> int:
        """Waits for the end of the program, reads the rest, and returns its exit status."""
        status = await asyncio.wait_for(asyncio.to_thread(self.process.wait), timeout)
        while self.read():
            pass
        return status

    def read(self) -> bool:
        """Reads what is there. Returns False if there is nothing."""
        try:
            data = os.read(self._master, 65_536)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # that one: the program has closed its side
                raise
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
            return False
        self.raw += data
        self._stream.feed(data)
        self._changed.set()
        return True


@asynccontextmanager
async def terminal(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 80, rows: int = 24
) -> AsyncIterator[PseudoTerminal]:
    """Runs the command on a terminal of this size; kills it at the end of the block if it still runs."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.set_blocking(master, False)
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={"TERM": "xterm-256color", **env},
            start_new_session=True,
        )
    finally:
        os.close(slave)
    shown = PseudoTerminal(process, master, columns=columns, rows=rows)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, shown.read)
    try:
        yield shown
    finally:
        loop.remove_reader(master)
        if process.poll() is None:
            process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(master)
