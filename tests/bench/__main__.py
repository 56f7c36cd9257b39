"""`make bench`: measures CPU, rates and latencies, beside floors that are measured in the same run."""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench import report
from tests.bench.bench import Bench, Measure, Scale
from tests.bench.figures import Invalid, Row
from tests.bench.goals import GOALS
from tests.bench.machine import busy, machine
from tests.bench.measures import MEASURES
from tests.bench.parts import Parts, cancel_on_signals
from turnkeeper.store.embedded import EmbeddedDatabaseError

QUICK = Scale(rounds=1, turns=20, quick=True)
EPILOG = """\
examples:
  make bench                                        every measure
  make bench BENCH_ARGS=--quick                     every measure with few rounds: about 12 minutes
  make bench BENCH_ARGS="--only turns-16"           one measure
  make bench BENCH_ARGS="--only turns --rounds 3"   measures with `turns` in the name, 3 rounds
  make bench BENCH_ARGS="--only turns-1,replay"     two measures

Exit status: 0 measured, also if goals are missed; 1 the run is invalid;
2 it cannot start; 130 interrupted.
"""


def main() -> int:
    """Runs the chosen measures. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=EPILOG + "\nmeasures:\n" + "\n".join(f"  {measure.name:16} {measure.about}" for measure in MEASURES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few rounds of few turns")
    parser.add_argument("--only", metavar="NAME,…", default="", help="only measures whose names contain one of these")
    parser.add_argument("--rounds", type=int, help="rounds of each side (default: 5, quick: 1)")
    parser.add_argument("--turns", type=int, help="turns a round (default: 200, quick: 20)")
    parser.add_argument(
        "--capacity", type=float, default=0.0, help="turns a second, so that `overload` need not find it"
    )
    parser.add_argument("--steps", metavar="N,…", default="", help="only these multiples of the capacity: 1,3")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), metavar="FILE", help="%(default)s")
    options = parser.parse_args()
    chosen = chosen_measures(options.only)
    if not chosen:
        return _cannot(f"no measure has {options.only!r} in its name; there are {', '.join(m.name for m in MEASURES)}")
    base = QUICK if options.quick else Scale()
    scale = replace(
        base,
        rounds=options.rounds or base.rounds,
        turns=options.turns or base.turns,
        capacity=options.capacity,
        steps=tuple(map(float, filter(None, options.steps.split(",")))),
    )
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(run(chosen, scale, options.out))
    except EmbeddedDatabaseError as error:
        return _cannot(str(error))
    print("\nbench: interrupted; every process that it started was stopped", file=sys.stderr)
    return 130


def chosen_measures(only: str) -> list[Measure]:
    """Returns the measures of a list of names or parts of names; a whole name selects that measure alone."""
    names = [measure.name for measure in MEASURES]
    chosen = {name for part in only.split(",") for name in names if (name == part if part in names else part in name)}
    return [measure for measure in MEASURES if measure.name in chosen]


async def run(chosen: Sequence[Measure], scale: Scale, out: Path) -> int:
    """Runs the measures, writes `out` and prints the table. Returns the exit status: 1 for an invalid run."""
    cancel_on_signals()
    began, rows = time.monotonic(), list[Row]()
    if warning := busy():
        _show_progress(warning, lasting=True)
    try:
        async with Parts() as parts:
            for number, measure in enumerate(chosen, 1):
                _show_progress(f"{number} of {len(chosen)}: {measure.about}", lasting=True)
                rows += await measure.run(Bench(parts, scale, _show_progress))
    except Invalid as invalid:
        _show_progress("")
        print(f"bench: this run is invalid: {invalid}", file=sys.stderr)
        return 1
    report.write(rows, GOALS, out)
    _show_progress("")
    print(f"{machine()}\n{report.table(rows, GOALS)}")
    print(f"{report.goals_summary(rows, GOALS)}; in {time.monotonic() - began:.0f} s; {out}")
    return 0


def _show_progress(text: str, *, lasting: bool = False) -> None:
    """Prints a line that the next one replaces on a terminal; elsewhere only lasting lines."""
    if sys.stderr.isatty():
        line = f"\r\x1b[K{'bench: ' if text else ''}{text}"
        print(line, end="\n" if lasting else "", file=sys.stderr, flush=True)
    elif lasting and text:
        print(f"bench: {text}", file=sys.stderr, flush=True)


def _cannot(why: str) -> int:
    print(f"bench: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
