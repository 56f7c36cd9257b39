"""`make run`: runs database, models and server until Ctrl-C, and prints lines to paste. PORT=50052 make run."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.demo import agents, paste, ports
from tests.demo.program import announced, end_process, ends_with_us, environment, has_own_model, tail
from turnkeeper import interrupts
from turnkeeper.child_processes import how_it_ended
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.shutdown_signals import ShutdownRequest
from turnkeeper_client import Client
from turnkeeper_client.errors import TurnkeeperError
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_PENDING

DEFAULT_PORT = 50051
DEFAULT_DATA = ".turnkeeper"
LEASE = "5s"
"""So soon after a `kill -9` the next server goes on with its turns."""
CLERK_SCRIPT = Path(__file__).with_name("clerk.toml")
LOOK_SECONDS = 0.5


class CannotRun(Exception):
    """The parts cannot run; the message has the reason and what to do."""


async def run(port: int, data: Path) -> int:
    """Runs until SIGINT or SIGTERM. Returns the exit status."""
    async with AsyncExitStack() as stack:
        agents_file = await _agents(stack, data)
        server, address = await stack.enter_async_context(_server(port, data, agents_file))
        client = await stack.enter_async_context(Client(address))
        shutdown = ShutdownRequest()
        stack.enter_context(shutdown.by_signals())
        print(paste.page(address, data, own_model=has_own_model()), flush=True)
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(_show_approvals(client, address))
            stopped = group.create_task(shutdown.wait())
            ended = group.create_task(server.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            for task in (looking, stopped, ended):
                task.cancel()
        if not ended.cancelled():
            log, end = data / "server.log", how_it_ended(ended.result())
            raise CannotRun(
                f"the server {end}. `make run` starts it again, with its data.\nThe end of {log}:\n{tail(log)}"
            )
        print("\nEnding; the sessions are kept for the next run.", flush=True)
    return 0


def _prepare(port: int, data: Path) -> None:
    if ports.taken(port):
        raise CannotRun(
            f"port {port} is taken by {ports.holder(port)}.\n"
            f"Stop that program, or take another port: PORT={port + 1} make run\n"
            "A second `make run` also needs a data folder of its own:\n"
            f"  PORT={port + 1} DATA={DEFAULT_DATA}-2 make run"
        )
    data.mkdir(parents=True, exist_ok=True, mode=0o700)


async def _agents(stack: AsyncExitStack, data: Path) -> Path | None:
    """Writes the samples with a scripted model for the clerk. Returns None if the caller's model calls tools itself."""
    if has_own_model():
        return None
    file = data / "agents.toml"
    port = agents.port_in(file)
    model = ScriptedModel(load_script(CLERK_SCRIPT), port=0 if ports.taken(port) else port)
    scripted = await stack.enter_async_context(model)
    file.write_text(agents.samples(clerk_at=scripted.base_url), encoding="utf-8")
    return file


@asynccontextmanager
async def _server(port: int, data: Path, agents_file: Path | None) -> AsyncIterator[tuple[Process, str]]:
    """Starts the server, with its log in a file. Yields it and its address; drains it at the end."""
    flags = ["--port", str(port), "--data-dir", str(data), "--lease", LEASE, "--drain-grace", "5s"]
    with (data / "server.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(*ends_with_us(), sys.executable, "-m", "turnkeeper", "serve", "--embedded", "--local-model", *flags),
            *(("--agents", str(agents_file)) if agents_file else ()),
            env=environment(TURNKEEPER_SAMPLE_OUTBOX=str((data / "outbox.jsonl").absolute())),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C ends this program, which then drains the server
        )
    try:
        address = await announced(process)
        if not address:
            last_line = tail(data / "server.log", lines=1)
            in_use = "in use by another mongod" in last_line
            another = f"\nAnother folder: PORT={port} DATA={DEFAULT_DATA}-2 make run"
            raise CannotRun(last_line + (another if in_use else ""))
        yield process, address
    finally:
        await end_process(process, by=signal.SIGINT)


async def _show_approvals(client: Client, address: str) -> None:
    """Prints each new pending approval, with the lines that decide it."""
    shown: set[str] = set()
    while True:
        try:
            async for approval in client.approvals.list(states=[APPROVAL_STATE_PENDING]):
                if approval.approval_id not in shown:
                    shown.add(approval.approval_id)
                    print(f"\nAn approval is pending: may {approval.tool} run with\n  {approval.arguments_json} ?")
                    print(f"# yes\n{paste.decision(address, approval, 'APPROVE')}")
                    print(f"# no\n{paste.decision(address, approval, 'REJECT')}", flush=True)
        except TurnkeeperError:
            pass  # the server drains or is busy; the next look finds more
        await asyncio.sleep(LOOK_SECONDS)


def main() -> int:
    """Returns the exit status: 0 ended by a signal, 2 it cannot run, 130 interrupted before it served."""
    interrupts.raise_again()
    data = Path(os.environ.get("DATA") or DEFAULT_DATA)
    try:
        port = int(os.environ.get("PORT") or DEFAULT_PORT)
        if not 0 < port < 65535:
            raise ValueError
    except ValueError:
        print(f"run: PORT is {os.environ['PORT']!r}; it must be a number from 1 to 65534", file=sys.stderr)
        return 2
    try:
        _prepare(port, data)
        return asyncio.run(run(port, data))
    except (CannotRun, OSError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return interrupts.INTERRUPTED
