"""Runs a small real language model on loopback, for a laptop and for the demo: SmolLM2-135M on llama.cpp.

It serves the OpenAI API under `base_url`. Callers must send `Connection: close`, because the server drops connections
that are kept alive, and a system prompt, because its answers make no sense without one. It calls no tools.
"""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import IO, Final

from turnkeeper.child_processes import RESTART_PAUSE, RESTART_PERIOD, RestartBudget, how_it_ended
from turnkeeper.model.weights import LocalModelError, find_weights
from turnkeeper.secret_variables import value_of

MODEL_NAME: Final = "smollm2-135m-instruct"
# Two answers at a time, each with 4,096 tokens of context, and a small cache of earlier prompts.
SLOTS: Final = 2
"""Calls that the server answers at the same time; further ones wait."""
CONTEXT_TOKENS: Final = 4096
"""Tokens of one call, the answer's included, at most."""
CACHE_MIB: Final = 64
"""Memory for the contexts of earlier calls, in MiB."""
START_TIMEOUT: Final = 30.0
"""Seconds from the start until the server answers, at most."""
STOP_TIMEOUT: Final = 5.0
"""Seconds that the server has to end before it is killed."""


LOCAL_MODEL_AT = "TURNKEEPER_LOCAL_MODEL_AT"
"""The environment variable with the base URL of the local model that a supervisor started for its replicas."""


logger = logging.getLogger(__name__)


class LocalModel:
    """The model's server in a process of its own, from `start` to `stop`; if it ends by itself, it is started again.

    That process also ends when this one does, even by kill -9: it reads a pipe that only this process holds open.
    """

    model_name = MODEL_NAME

    def __init__(self) -> None:
        """Starts nothing."""
        self._process: asyncio.subprocess.Process | None = None
        self._base_url = ""
        self._port = 0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """Returns the address for an OpenAI client while the server runs: "http://127.0.0.1:PORT/v1"."""
        return self._base_url

    @property
    def pid(self) -> int | None:
        """Returns the server's process id; None if it does not run."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> str:
        """Starts the server; returns the base URL."""
        await self.start()
        return self.base_url

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        await self.stop()

    async def start(self) -> None:
        """Returns once the model is loaded and answers. Raises LocalModelError if it does not; then nothing runs."""
        await self._start()
        self._keeping = asyncio.create_task(self._keep_running())

    async def _keep_running(self) -> None:
        """Starts the server again, at its address, whenever it has ended. Runs until it is cancelled."""
        budget = RestartBudget()
        while True:
            assert self._process is not None
            end = how_it_ended(await self._process.wait())
            logger.error("the local model %s; it is started again, and until it answers model calls fail", end)
            while not await self._restarted(budget):  # noqa: ASYNC110
                await asyncio.sleep(RESTART_PAUSE)
            logger.warning("the local model answers again")

    async def _restarted(self, budget: RestartBudget) -> bool:
        """Tries to start the server again; first waits if it was started too often. Returns False if it fails."""
        while not budget.take():
            logger.error("the local model ends again and again; the next start is in %.0f s", RESTART_PERIOD)
            await asyncio.sleep(RESTART_PERIOD)
        try:
            await self._start()
        except LocalModelError as error:
            logger.error("the local model cannot be started again: %s", error)
            return False
        return True

    async def _start(self) -> None:
        weights = find_weights()
        with tempfile.TemporaryFile() as errors:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "turnkeeper.model.local", str(weights), str(self._port)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this process, which stops the server after its own end
            )
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    self._base_url = await _announced(self._process)
            except TimeoutError:
                await self._end()
                raise LocalModelError(f"the local model was not ready after {START_TIMEOUT:.0f} s") from None
            except BaseException:
                await self._end()
                raise
            if not self._base_url:
                await self._end()
                raise LocalModelError(f"the local model's server ended at once: {_tail(errors)}")
        self._port = int(self._base_url.removesuffix("/v1").rpartition(":")[2])

    async def stop(self) -> None:
        """Ends the server, by force after STOP_TIMEOUT. Does nothing if it does not run."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self._port = 0
        await self._end()

    async def _end(self) -> None:
        process, self._process, self._base_url = self._process, None, ""
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _announced(process: asyncio.subprocess.Process) -> str:
    """Returns the address that the server prints once it is ready; "" if it ended before."""
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"http://"):
            return f"{line.decode().strip()}/v1"
    return ""


def _tail(errors: IO[bytes]) -> str:
    """Returns the last five lines of the server's errors, as one."""
    errors.seek(0)
    return " / ".join(errors.read().decode(errors="replace").splitlines()[-5:])


def _serve(weights: str, port: int) -> None:
    """Serves in the other process until its standard input ends."""
    import xllamacpp  # noqa: PLC0415 - only this process may load it: it takes 100 MB and all cores

    options = xllamacpp.CommonParams()
    options.hostnames = ["127.0.0.1"]
    options.port = port
    options.verbosity = -1
    options.model.path = weights
    options.model_alias = {MODEL_NAME}
    options.n_parallel = SLOTS
    options.n_ctx = SLOTS * CONTEXT_TOKENS
    options.cache_ram_mib = CACHE_MIB
    # One core is left to the service and the database: if all compete, an answer can take ten times as long.
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) - 1)
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()
    server = None


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))


async def local_url(environ: Mapping[str, str], stack: AsyncExitStack, *, enabled: bool, base_url: str) -> str:
    """Returns the local model's address, and starts it unless the supervisor did.

    Returns "" if it is not `enabled`, or if another model is set: by `base_url`, or by a key for OpenAI's own server.
    """
    if not enabled or base_url or value_of(environ, "OPENAI_API_KEY"):
        return ""
    return environ.get(LOCAL_MODEL_AT, "") or await stack.enter_async_context(LocalModel())
