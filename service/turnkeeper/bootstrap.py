"""Prepares what a server and the supervisor both need. Imports no part of a server, so a supervisor stays small."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TextIO

from turnkeeper.database_state import NotifyState
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper.start_errors import SettingError
from turnkeeper.store.embedded import DatabaseLost, EmbeddedMongo
from turnkeeper.telemetry import logs

SECRET_LENGTH: Final = 8
"""Characters of the shortest secret that is redacted in the log; a shorter one is a placeholder such as `none`."""
_SECRET: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
"""The name of a variable that holds a secret."""
_HEADERS: Final = re.compile(r"OTEL_EXPORTER_OTLP_(?:TRACES_|METRICS_)?HEADERS")
"""The name of a variable with headers such as `api-key=…,other=…`."""


def start_logs(
    environ: Mapping[str, str], *, level: str, log_format: str, replica: str, stream: TextIO | None = None
) -> logs.Logs:
    """Starts the process's log, in which the secrets of `environ` are redacted; on standard error without a stream."""
    as_json = log_format == "json" or None
    return logs.start(level=level, replica=replica, secrets=secrets_of(environ), as_json=as_json, stream=stream)


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """Returns the values of the variables that hold secrets: keys of models, headers for a collector."""
    secrets: list[str] = []
    for name, value in environ.items():
        if _SECRET.search(name):
            secrets.append(value)
        elif _HEADERS.fullmatch(name):
            for header in value.split(","):
                secrets += [header.strip(), header.partition("=")[2].strip()]
    return [secret for secret in secrets if len(secret) >= SECRET_LENGTH]


@dataclass(frozen=True, slots=True)
class Database:
    """The database of a server, or of several processes."""

    uri: str
    private: EmbeddedMongo | None = None
    """None for a configured one."""

    @contextlib.asynccontextmanager
    async def kept_running(self, notify: NotifyState) -> AsyncIterator[None]:
        """Keeps a private database running while the block runs, as `EmbeddedMongo.keep_running` does.

        Cancels the block and raises DatabaseLost if the database is lost. Does nothing for a configured one.
        """
        if self.private is None:
            yield
            return
        try:
            async with background(partial(self.private.keep_running, notify)):
                yield
        except ExceptionGroup as group:
            lost = group.subgroup(DatabaseLost)
            raise (lost.exceptions[0] if lost else group) from None


async def open_database(
    configured: str, shutdown: ShutdownRequest, *, embedded: bool, data_dir: Path, stack: AsyncExitStack
) -> Database:
    """Returns the configured database, or with `embedded` a private one, which `stack` stops.

    Raises SettingError if no database is set, EmbeddedDatabaseError if the private one does not start.
    """
    if configured:
        return Database(configured)
    if not embedded:
        raise SettingError("no database is set: pass --embedded for a private one, or set MONGODB_URI")
    private = EmbeddedMongo(data_dir, hurried=lambda: shutdown.interrupted)
    return Database(await stack.enter_async_context(private), private)


@contextlib.asynccontextmanager
async def background(*jobs: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Runs the jobs while the block runs, and cancels them at its end. A job that fails cancels the block.

    Raises an error of the block as it is, and errors of jobs as an ExceptionGroup.
    """
    failed: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job()) for job in jobs]
        await asyncio.sleep(0)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised after the group has ended
            failed = error
        finally:
            for task in tasks:
                task.cancel()
    if failed is not None:
        raise failed


def report_error(command: str, error: Exception) -> None:
    """Writes why a command failed to standard error, in one line."""
    print(f"turnkeeper {command}: {error}", file=sys.stderr)


def exit_at_once(status: int = 0) -> NoReturn:
    """Ends the process with this status; everything is drained and closed by now.

    The driver's threads may still wait for a database that is gone, and Python would wait for them.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the process was started without it
            with contextlib.suppress(OSError, ValueError):  # a tool may have closed it
                stream.flush()
    os._exit(status)
