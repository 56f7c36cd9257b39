"""Prepares what a server and the supervisor both need. Imports no part of a server, so a supervisor stays small."""

import asyncio
import contextlib
import ipaddress
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace

from turnkeeper.settings import SettingError, Settings
from turnkeeper.store.embedded import EmbeddedMongo


def with_replica_name(settings: Settings) -> Settings:
    """Returns the settings with a name for this replica: the configured one, or a random one."""
    return settings if settings.replica else replace(settings, replica=f"replica-{os.getpid()}-{secrets.token_hex(3)}")


def check_host(settings: Settings) -> None:
    """Raises SettingError if the host is not loopback: calls carry no identity, so other machines must not reach it."""
    host = "127.0.0.1" if settings.host == "localhost" else settings.host.strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SettingError(
            f"--host is {settings.host}: with identity none every caller may do everything, so only loopback is served"
        )


async def database_uri(settings: Settings, stack: AsyncExitStack) -> str:
    """Returns the database's URI. With `--embedded`, starts a private one that `stack` stops.

    Raises SettingError if no database is set, EmbeddedDatabaseError if the private one does not start.
    """
    if settings.mongodb_uri:
        return settings.mongodb_uri
    if not settings.embedded:
        raise SettingError("no database is set: pass --embedded for a private one, or set MONGODB_URI")
    return await stack.enter_async_context(EmbeddedMongo(settings.data_dir))


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
