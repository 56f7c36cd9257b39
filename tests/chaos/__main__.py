"""`make chaos`: checks the promises under faults. The defaults are SEED=1 and MINUTES=5."""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from tests.chaos.clock import NoFaketime
from tests.chaos.faults.kinds import KINDS, chosen
from tests.chaos.report import table
from tests.chaos.run import Options, run
from turnkeeper.store.embedded import EmbeddedDatabaseError

EPILOG = f"""\
kinds of fault: {", ".join(KINDS)}

Exit status: 0 every promise held and the figures suffice; 1 they did not;
2 it cannot run; 130 interrupted.
"""


def main() -> int:
    """Runs, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Run the service on three servers and a replica set of three, break things, and check everything.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="decides the faults and their order (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="minutes of faults (default: %(default)s)")
    parser.add_argument("--only", metavar="KINDS", help="only these kinds of fault, with commas")
    parser.add_argument("--without", metavar="KINDS", default="", help="not these; `clock`: none that need libfaketime")
    parser.add_argument("--sessions", type=int, help="users at once, of both tenants")
    parser.add_argument("--report", type=Path, default=Path("build/chaos.json"), metavar="FILE", help="%(default)s")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="for logs and records; emptied first (default: build/chaos/seed-N)"
    )
    arguments = parser.parse_args()
    without = _names(arguments.without)
    try:
        kinds = chosen(only=_names(arguments.only) if arguments.only else None, without=without)
    except ValueError as error:
        return _cannot(error)
    options = Options(
        seed=arguments.seed,
        minutes=arguments.minutes,
        kinds=kinds,
        folder=(arguments.folder or Path("build", "chaos", f"seed-{arguments.seed}")).absolute(),
        report=arguments.report,
        clocks=any(KINDS[kind].clock for kind in kinds),
        sessions=arguments.sessions,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(_main(options))
    except (NoFaketime, EmbeddedDatabaseError) as error:
        return _cannot(error)
    print("\nchaos: interrupted; every process that it started was stopped")
    return 130


async def _main(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    report = await run(options)
    print(table(report))
    print(f"       report: {options.report}; logs and records: {options.folder}")
    return 0 if report["passed"] else 1


def _names(given: str) -> set[str]:
    return {name.strip() for name in given.split(",") if name.strip()}


def _cannot(error: Exception) -> int:
    print(f"chaos: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
