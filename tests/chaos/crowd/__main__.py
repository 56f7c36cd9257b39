"""`make chaos-crowd`: 1,000 clients are killed in mid-turn, and every turn ends; 10,000 idle streams beside calls."""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from tests import harness
from tests.chaos.crowd.talkers import session_name
from tests.chaos.figures import quantile
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.store.embedded import EmbeddedMongo

REPORT = Path("build/chaos-crowd.json")
DATABASE = "crowd"
PROCESSES = 4
"""Processes of talking clients."""
IDLE_PROCESSES = 2
ATTACH_TIME = 120.0
END_TIME = 300.0
SPREAD = 100
"""Sessions in which a turn runs at last, to check that the idle streams still deliver."""
CALLS = 500
ANSWER = "This is sent slowly to {name}, and no client reads it any more. "
SCRIPT = """
[[reply]]
match = '^talk (?P<name>\\S+)'
chunk = 6
delay = "3s"
text = "ANSWER"

[[reply]]
text = "ok"
""".replace("ANSWER", ANSWER)
AGENTS = """
[[agent]]
name = "talker"
"""

Report = dict[str, Any]


class Stage:
    """A database, a model and two servers."""

    def __init__(self, uri: str, servers: list[harness.ServerProcess]) -> None:
        self.uri = uri
        self.servers = servers

    async def turns(self, **match: Any) -> int:
        """Returns the number of turns that match, as a majority has them."""
        async with AsyncMongoClient[dict[str, Any]](self.uri, readConcernLevel="majority") as client:
            return int(await client[DATABASE].turns.count_documents(match))

    async def answers(self) -> list[str]:
        """Returns the stored answers that differ from the model's."""
        wrong = []
        async with AsyncMongoClient[dict[str, Any]](self.uri, readConcernLevel="majority") as client:
            async for turn in client[DATABASE].turns.find({"state": "COMPLETED"}):
                text = "".join(part["text"] for part in turn["answer"])
                if text != ANSWER.replace("{name}", turn["session_id"]):
                    wrong.append(f"{turn['session_id']}: {text!r}")
        return wrong


async def killed(stage: Stage, *, clients: int) -> Report:
    """Kills clients in the middle of their answers. Returns what became of their turns."""
    share = clients // PROCESSES
    async with contextlib.AsyncExitStack() as stack:
        programs = [
            await stack.enter_async_context(
                _program(
                    "tests.chaos.crowd.talkers",
                    stage.servers[number % len(stage.servers)].address,
                    *(number * share, share),
                )
            )
            for number in range(PROCESSES)
        ]
        async with asyncio.timeout(ATTACH_TIME):
            for program in programs:
                await _line(program)
        open_turns = await stage.turns(end_time=None)
        for program in programs:
            program.kill()
        began = time.monotonic()
    _print(f"{share * PROCESSES} clients killed with {open_turns} turns under way")
    while (left := await stage.turns(end_time=None)) and time.monotonic() - began < END_TIME:
        _print(f"{left} turns still go on")
        await asyncio.sleep(2)
    return {
        "clients": share * PROCESSES,
        "turns_under_way_when_killed": open_turns,
        "turns_completed": await stage.turns(state="COMPLETED"),
        "turns_not_ended": await stage.turns(end_time=None),
        "wrong_answers": await stage.answers(),
        "seconds_until_the_last_ended": round(time.monotonic() - began, 1),
    }


async def idle(stage: Stage, *, connections: int, streams: int, sessions: int) -> Report:
    """Opens idle streams. Returns their memory, and the latency of calls beside them."""
    server = stage.servers[0]
    async with harness.connect(server.address) as stubs:
        alone = await _unary(stubs)
        before = _resident(server.pid)
        share = connections // IDLE_PROCESSES
        async with contextlib.AsyncExitStack() as stack:
            programs = [
                await stack.enter_async_context(
                    _program("tests.chaos.crowd.idlers", server.address, share, streams, sessions)
                )
                for _ in range(IDLE_PROCESSES)
            ]
            async with asyncio.timeout(ATTACH_TIME * 3):
                for program in programs:
                    await _line(program)
            total = share * IDLE_PROCESSES * streams
            _print(f"{total} streams over {share * IDLE_PROCESSES} connections have caught up")
            beside = await _unary(stubs)
            after = _resident(server.pid)
            for number in range(SPREAD):
                await harness.send_message_to_session(stubs, session_name(number), "wake up", wait=30)
            expected = total // sessions * SPREAD
            reached, broken = await _reached(programs, expected)
    return {
        "streams": total,
        "connections": share * IDLE_PROCESSES,
        "sessions": sessions,
        "kib_per_idle_stream": round((after - before) / total, 2),
        "server_resident_mib": {"before": round(before / 1024), "after": round(after / 1024)},
        "unary_ms_alone": alone,
        "unary_ms_beside": beside,
        "streams_that_should_hear_at_last": expected,
        "streams_that_heard": reached,
        "streams_broken": broken,
    }


async def _unary(stubs: harness.Stubs) -> dict[str, float]:
    """Returns the milliseconds of GetSession, one at a time."""
    taken = []
    for number in range(CALLS):
        began = time.perf_counter()
        await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_name(number % SPREAD)))
        taken.append((time.perf_counter() - began) * 1000)
    return {"p50": quantile(taken, 0.5) or 0.0, "p99": quantile(taken, 0.99) or 0.0}


async def _reached(programs: list[asyncio.subprocess.Process], expected: int) -> tuple[int, int]:
    reached = broken = 0
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(f"{expected // len(programs)}\n".encode())
    for program in programs:
        _, count, _, ended = (await _line(program)).split()
        reached, broken = reached + int(count), broken + int(ended)
    return reached, broken


@contextlib.asynccontextmanager
async def _program(module: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - no public way to close the pipe


async def _line(program: asyncio.subprocess.Process) -> str:
    assert program.stdout is not None
    line = (await program.stdout.readline()).decode().strip()
    if not line:
        raise RuntimeError("a program of clients ended early; its reason is on standard error")
    return line


def _resident(pid: int) -> int:
    """Returns the resident memory in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError(pid)


def _print(text: str) -> None:
    print(f"chaos-crowd: {text}", flush=True)


async def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="turnkeeper-crowd-") as folder:
        agents = Path(folder) / "agents.toml"
        agents.write_text(AGENTS, encoding="utf-8")
        flags = ("--agents", str(agents), "--lease", "30s", "--concurrency", "512", "--log-level", "ERROR")
        async with (
            EmbeddedMongo(Path(folder) / "database") as uri,
            harness.scripted(SCRIPT) as model,
            harness.server_process(uri, DATABASE, model, flags=flags) as first,
            harness.server_process(uri, DATABASE, model, flags=flags) as second,
        ):
            stage = Stage(uri, [first, second])
            crowd = await killed(stage, clients=args.clients)
            sessions = min(args.clients, args.connections * args.streams)
            silence = await idle(stage, connections=args.connections, streams=args.streams, sessions=sessions)
    return _show_report({"killed_clients": crowd, "idle_streams": silence})


def _show_report(report: Report) -> int:
    crowd, silence = report["killed_clients"], report["idle_streams"]
    wrong = {
        "turns not ended": crowd["turns_not_ended"],
        "turns lost": crowd["clients"] - crowd["turns_completed"],
        "wrong answers": len(crowd["wrong_answers"]),
        "idle streams broken": silence["streams_broken"],
        "idle streams that did not hear": silence["streams_that_should_hear_at_last"] - silence["streams_that_heard"],
    }
    report["violations"] = wrong
    for part in ("killed_clients", "idle_streams"):
        for name, value in report[part].items():
            print(f"{name.replace('_', ' '):40} {value}")
    print(", ".join(f"{name}: {count}" for name, count in wrong.items()))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {REPORT}")
    return 1 if any(wrong.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.crowd",
        description=__doc__,
        epilog="example: python -m tests.chaos.crowd --clients 100 --connections 10 --streams 10",
    )
    parser.add_argument("--clients", type=int, default=1000, help="clients that are killed [1000]")
    parser.add_argument("--connections", type=int, default=100, help="connections with idle streams [100]")
    parser.add_argument("--streams", type=int, default=100, help="idle streams on each [100]")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
