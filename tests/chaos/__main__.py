"""`make chaos`: the promises under faults. SEED=1 and MINUTES=5 unless they say otherwise."""

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

Exit status: 0 every promise held and the run saw enough; 1 it did not; 2 it cannot be run; 130 interrupted.
"""


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Run the service on three servers and a replica set of three, break things, and check everything.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="what happens, and in which order (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="how long there are faults (default: %(default)s)")
    parser.add_argument("--only", metavar="KINDS", help="only these kinds of fault, with commas")
    parser.add_argument("--without", metavar="KINDS", default="", help="not these; `clock`: none that need libfaketime")
    parser.add_argument("--sessions", type=int, help="users at once")
    parser.add_argument("--report", type=Path, default=Path("build/chaos.json"), metavar="FILE", help="%(default)s")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where everybody writes; emptied first (default: build/chaos/seed-N)"
    )
    asked = parser.parse_args()
    without = _names(asked.without)
    try:
        kinds = chosen(only=_names(asked.only) if asked.only else None, without=without)
    except ValueError as error:
        return _cannot(error)
    options = Options(
        seed=asked.seed,
        minutes=asked.minutes,
        kinds=kinds,
        folder=(asked.folder or Path("build", "chaos", f"seed-{asked.seed}")).absolute(),
        report=asked.report,
        clocks=any(KINDS[kind].clock for kind in kinds),
        sessions=asked.sessions,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(_main(options))
    except (NoFaketime, EmbeddedDatabaseError) as error:
        return _cannot(error)
    print("\nchaos: interrupted; everything that it started was ended")
    return 130


async def _main(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    told = await run(options)
    print(table(told))
    print(f"       the report: {options.report}; what everybody wrote: {options.folder}")
    return 0 if told["passed"] else 1


def _names(given: str) -> set[str]:
    return {name.strip() for name in given.split(",") if name.strip()}


def _cannot(error: Exception) -> int:
    print(f"chaos: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
