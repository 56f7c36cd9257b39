"""An MCP server that is a process of this machine, under a guard: its standard input and output as streams of messages.

The SDK's own transport keeps a line whole, however long it is, and leaves standard error to a file.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from turnkeeper.child_processes import how_it_ended
from turnkeeper.start_errors import SettingError
from turnkeeper.tools.mcp.link import CannotOpen, Link, one_line
from turnkeeper.tools.mcp.messages import Endless, Lines, Pace, UnreadableLine, message_of
from turnkeeper.tools.mcp.tables import StdioServer, filled_in

GUARD: Final = Path(__file__).with_name("guard.py")
CHUNK: Final = 64 << 10
"""Bytes that are read at once."""
QUIET_TIME: Final = 1.0
"""Seconds that a server has to end by itself once its standard input is closed."""
END_TIME: Final = 5.0
"""Seconds that the guard has to end the server: it needs 1 s for one that obeys, and 4 s at most."""
STDERR_KEPT: Final = 1_000
"""Bytes of standard error that are kept, the last ones, for the message about a server that ended."""
INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "TMPDIR", "TZ", "USER")
"""Variables of the service that each server receives, beside PATH. The others may be secrets."""

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def opened(server: StdioServer, environ: Mapping[str, str]) -> AsyncIterator[Link]:
    """Starts the server's process, and yields the link to it. Ends the process, and all that it started, at the end.

    Raises CannotOpen if the program cannot be started.
    """
    process = await _started(server, environ)
    running = _Running(server.name, process)
    try:
        yield running.link
    finally:
        closing = asyncio.create_task(running.close())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        await asyncio.shield(closing)


_closing: set[asyncio.Task[None]] = set()
"""Tasks that end processes: one goes on also if the task that waits for it is cancelled."""


async def _started(server: StdioServer, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    path = os.pathsep.join((environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    program = shutil.which(server.command[0], path=path)
    if program is None:
        raise CannotOpen(f"there is no program {server.command[0]!r:.200} to start")
    try:
        own = {name: filled_in(value, environ) for name, value in server.env.items()}
    except SettingError as error:
        raise CannotOpen(str(error)) from None
    inherited = {name: environ[name] for name in INHERITED if name in environ}
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), program, *server.command[1:]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": path, **inherited, **own},
            cwd=server.cwd or None,
            start_new_session=True,  # Ctrl-C reaches the service alone
        )
    except OSError as error:
        raise CannotOpen(f"it cannot be started: {error.strerror}") from None


class _Running:
    """The process of a server, and the tasks that read and write its streams."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._name = name
        self._process = process
        self._stderr = b""
        self._ignored = 0
        self._to_session, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, self._from_session = anyio.create_memory_object_stream[SessionMessage](0)
        self._streams: tuple[MemoryObjectSendStream[Any] | MemoryObjectReceiveStream[Any], ...] = (
            *(self._to_session, read, write, self._from_session),
        )
        self.link = Link(read=read, write=write, end_text=self._end)
        self._tasks = [asyncio.create_task(job()) for job in (self._read, self._write, self._read_stderr)]

    async def close(self) -> None:
        """Ends the process: closes its standard input, and has the guard end it if that does not."""
        stdin, process = self._process.stdin, self._process
        assert stdin is not None
        stdin.close()
        for stream in self._streams:
            stream.close()
        try:
            async with asyncio.timeout(QUIET_TIME):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(END_TIME):
                    await process.wait()
            except TimeoutError:
                logger.error("the tool server %s does not end; its guard is killed", self._name)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Passes on the messages of standard output, until it ends or one line of it does not."""
        stdout, lines, pace = self._process.stdout, Lines(), Pace()
        assert stdout is not None
        try:
            while chunk := await stdout.read(CHUNK):
                await asyncio.sleep(pace.spend(len(chunk)))
                for line in lines.feed(chunk):
                    await asyncio.sleep(pace.spend(Pace.MESSAGE))
                    if (message := self._message(line)) is not None:
                        await self._to_session.send(message)
        except Endless:
            logger.warning("the tool server %s writes a line without an end: it is ended", self._name)
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the session is over
        finally:
            self._to_session.close()
            self.link.ended.set()
        while await stdout.read(CHUNK):  # a server that cannot write does not see that its input is closed
            pass

    def _message(self, line: bytes | UnreadableLine) -> SessionMessage | None:
        """Returns the message of a line; None for one that is none, which is logged once."""
        if not isinstance(line, UnreadableLine) and not line.strip():
            return None
        message = line if isinstance(line, UnreadableLine) else message_of(line)
        if isinstance(message, SessionMessage):
            return message
        self._ignored += 1
        if self._ignored == 1:
            logger.warning(
                "the tool server %s writes lines that cannot be read as messages: they are ignored", self._name
            )
        return message.error()

    async def _write(self) -> None:
        """Writes the session's messages to standard input."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, anyio.ClosedResourceError):  # the end of the process is read elsewhere
            async for item in self._from_session:
                stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await stdin.drain()

    async def _read_stderr(self) -> None:
        """Reads standard error, and keeps its last bytes alone: no server may fill a disk or the memory."""
        stderr, pace = self._process.stderr, Pace()
        assert stderr is not None
        while chunk := await stderr.read(CHUNK):
            self._stderr = (self._stderr + chunk)[-STDERR_KEPT:]
            await asyncio.sleep(pace.spend(len(chunk)))

    async def _end(self, *, quoted: bool) -> str:
        """Returns how the process ended; `quoted`, with the last line that it wrote to standard error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_TIME):
                await self._process.wait()
        status = self._process.returncode
        end = "it closed its output" if status is None else f"it {how_it_ended(status)}"
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return f"{end}; its last words: {one_line(lines[-1])}" if lines and quoted else end
