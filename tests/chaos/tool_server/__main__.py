"""`make chaos-tools`: kills a tool server under load until enough kills fell between an effect and its answer."""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import harness
from tests.chaos.tool_server.judgement import answers_of, complaints, known_by
from tests.chaos.tool_server.service import EFFECTS, KILLS, lines
from tests.chaos.tool_server.users import AGENTS, SCRIPT, Users
from tests.checker.compare import differences
from tests.demo.ports import free_port
from tests.tool_servers.bank import catalogue
from tests.tool_servers.served import a_key_file
from turnkeeper.store.embedded import EmbeddedMongo

REPORT = Path("build/chaos-tools.json")
REPLICAS = 3
DATABASE = "chaos_tools"


class Nemesis:
    """Runs the tool server, kills it at random, and starts it again."""

    def __init__(self, folder: Path, port: int, *, seed: int, mute: bool) -> None:
        more = ["--mute"] if mute else []
        self._command = [sys.executable, "-m", "tests.chaos.tool_server.service", str(folder), str(port), *more]
        self._random = random.Random(seed)
        self._folder = folder
        self.kills = 0
        self.process: asyncio.subprocess.Process | None = None

    @property
    def between(self) -> int:
        """The kills that fell between the effect of a call and its answer, as the server counts them."""
        return sum(bool(line["keys"]) for line in lines(self._folder / KILLS))

    async def start(self) -> None:
        """Starts the server, and returns once it serves."""
        self.process = await asyncio.create_subprocess_exec(*self._command, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"serves\n"

    async def kill(self) -> None:
        """Kills the server, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def run(self, until: int) -> None:
        """Kills and starts the server until so many kills fell between; it runs at the end."""
        while self.between < until:
            await asyncio.sleep(self._random.uniform(0.2, 0.8))
            await self.kill()
            self.kills += 1
            await self.start()
            if self.kills % 20 == 0:
                print(f"chaos-tools: {self.kills} kills, {self.between} between effect and answer", flush=True)


async def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Runs it all, and returns the report."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="turnkeeper-chaos-tools-") as name:
        folder = Path(name)
        (folder / "agents.toml").write_text(AGENTS)
        port = free_port()
        file = catalogue(folder, f"127.0.0.1:{port}", a_key_file(folder))
        flags = ("--agents", str(folder / "agents.toml"), "--catalogue", str(file), "--log-level", "ERROR")
        nemesis = Nemesis(folder, port, seed=args.seed, mute=args.mute)
        async with contextlib.AsyncExitStack() as stack:
            uri = await stack.enter_async_context(EmbeddedMongo(folder / "database"))
            model = await stack.enter_async_context(harness.scripted(SCRIPT))
            stack.push_async_callback(nemesis.kill)
            await nemesis.start()
            replicas: list[harness.Stubs] = []
            for _ in range(REPLICAS):
                more = (*flags, "--outcome-patience", "30s")
                server = await stack.enter_async_context(harness.server_process(uri, DATABASE, model, flags=more))
                replicas.append(await stack.enter_async_context(harness.connect(server.address)))
            users = Users(replicas)
            load = asyncio.create_task(users.run(args.users))
            await nemesis.run(args.kills)
            users.over.set()
            await asyncio.wait_for(load, 180)
            logs = {session: await harness.all_events(replicas[0], session) for session in users.sessions}
            broken = await differences(uri, DATABASE)
        effects = lines(folder / EFFECTS)
        answers = sum((answers_of(events) for events in logs.values()), Counter[str]())
        cut = {key for line in lines(folder / KILLS) for key in line["keys"]}
        violations = [*complaints(logs, effects, cut), *users.trouble, *broken]
        return {
            "seed": args.seed,
            "reconcile": "UNIMPLEMENTED" if args.mute else "implemented",
            "kills": nemesis.kills,
            "kills_between_effect_and_answer": nemesis.between,
            "calls_between_effect_and_answer": sum(len(line["keys"]) for line in lines(folder / KILLS)),
            "turns": len(logs),
            "effects": len(effects),
            "doubled_effects": sum(times > 1 for times in Counter(line["key"] for line in effects).values()),
            "answers": dict(answers),
            "unknown_outcomes": len(cut),
            "unknown_outcomes_known_by": dict(known_by(logs, cut)),
            "questions_to_people": users.questions,
            "violations": violations[:20],
            "seconds": round(time.monotonic() - began, 1),
        }


def main() -> int:
    """Runs, prints and writes the report. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.tool_server", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills between effect and answer (default: %(default)s)")
    parser.add_argument("--users", type=int, default=12, help="at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="decides when it is killed (default: %(default)s)")
    parser.add_argument("--mute", action="store_true", help="the server leaves Reconcile unimplemented")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help="%(default)s")
    args = parser.parse_args()
    report = asyncio.run(run(args))
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
