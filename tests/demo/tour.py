"""`make demo`: a tour on real parts that checks itself; -v shows each check.

DEMO_BREAK=resume|takeover|approval breaks a promise.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time

from tests.demo import approve, follow, resume, takeover, talk
from tests.demo.breaks import Break, breaks_of
from tests.demo.parts import LEASE, Parts
from tests.demo.program import has_own_model
from tests.demo.report import BrokenPromise, Report, Step
from turnkeeper import interrupts
from turnkeeper.model.local import MODEL_NAME
from turnkeeper.store.embedded import EmbeddedDatabaseError

STEPS = (talk, approve, follow, resume, takeover)
CANNOT_START = (BrokenPromise, EmbeddedDatabaseError, OSError, TimeoutError)
END_TITLE = "every process ends, and none is left behind"


async def demo(broken: frozenset[Break], *, verbose: bool) -> int:
    """Runs the demo. Returns the exit status."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    report = Report(len(STEPS) + 1, verbose=verbose)
    report.describe("Turnkeeper on real parts. Each check is one of what came over the network.")
    for promise in sorted(broken):
        report.describe(f"DEMO_BREAK={promise}: {promise.description}. A step must fail.")
    async with contextlib.AsyncExitStack() as stack:
        try:
            parts = await stack.enter_async_context(Parts(broken))
            await _start(report, parts)
        except CANNOT_START as error:
            report.describe(f"The parts could not be started: {str(error) or type(error).__name__}")
            return report.end()
        report.describe("The steps")
        for chapter in STEPS:
            async with report.step(chapter.TITLE) as step:
                await chapter.run(step, parts)
        async with report.step(END_TITLE) as step:
            await _end(step, parts)
    return report.end()


async def _start(report: Report, parts: Parts) -> None:
    report.describe("The parts")
    report.part("database", f"MongoDB, a private replica set of one (pid {parts.database.pid})")
    report.part("scripted model", f"{parts.scripted.base_url}, for steps that need the same text each time")
    start = time.monotonic()
    server = await parts.start_server()
    report.part("real model", _model())
    report.part(
        "server",
        f"`turnkeeper serve` (pid {server.pid}) on {server.address}, leases of {LEASE} s; "
        f"up in {time.monotonic() - start:.1f} s",
    )


def _model() -> str:
    if has_own_model():
        return f"the one of your OPENAI_… variables, at {os.environ.get('OPENAI_BASE_URL') or 'OpenAI'}"
    return f"{MODEL_NAME} on this machine, beside the server; no key, no network"


async def _end(step: Step, parts: Parts) -> None:
    running = [server for server in parts.servers if server.running]
    statuses = [await server.drain() for server in running]
    step.check("exit status of each drained server", statuses, expected=[0] * len(running))
    await parts.stop()
    step.check(f"of {len(parts.pids)} processes, these still run", await parts.leftovers(), expected=[])


def main() -> int:
    """Returns the exit status: 0 if every step passed, 1 if not, 2 for a bad DEMO_BREAK, 130 if interrupted."""
    interrupts.raise_again()
    try:
        broken = breaks_of(os.environ.get("DEMO_BREAK", ""))
    except ValueError:
        print(f"demo: DEMO_BREAK can be {', '.join(Break)}, or several with commas", file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        return asyncio.run(demo(broken, verbose=bool({"-v", "--verbose"} & set(sys.argv[1:]))))
    print("\ndemo: interrupted; every process that it started was stopped")
    return interrupts.INTERRUPTED
