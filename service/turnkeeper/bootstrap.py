"""What one server and a supervisor of several begin with. It imports no part of a server: a supervisor stays small."""

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


def named(settings: Settings) -> Settings:
    """The settings with a name for this replica, made up where none is given."""
    return settings if settings.replica else replace(settings, replica=f"replica-{os.getpid()}-{secrets.token_hex(3)}")


def check_identity(settings: Settings) -> None:
    """Raises SettingError for an address that callers of this identity must not reach."""
    host = "127.0.0.1" if settings.host == "localhost" else settings.host.strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SettingError(
            f"--host is {settings.host}: with identity none everybody may do everything, so only loopback is served"
        )


async def database(settings: Settings, stack: AsyncExitStack) -> str:
    """Its URI; a private one is started where the settings say so. Raises SettingError, EmbeddedDatabaseError."""
    if settings.mongodb_uri:
        return settings.mongodb_uri
    if not settings.embedded:
        raise SettingError("no database is set: pass --embedded for a private one, or set MONGODB_URI")
    return await stack.enter_async_context(EmbeddedMongo(settings.data_dir))


@contextlib.asynccontextmanager
async def background(*runs: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Tasks that live as long as the block; one that dies ends the block with its error.

    The block's own error stays what it is: a task group would wrap it.
    """
    failed: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run()) for run in runs]
        await asyncio.sleep(0)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below
            failed = error
        finally:
            for task in tasks:
                task.cancel()
    if failed is not None:
        raise failed
