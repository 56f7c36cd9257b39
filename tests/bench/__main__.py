"""`make bench`: what things cost, beside floors measured in the same run."""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.bench import Bench, Measure, Scale
from tests.bench.figures import Invalid, Row
from tests.bench.goals import GOALS
from tests.bench.machine import busy, machine
from tests.bench.measures import MEASURES
from tests.bench.parts import Parts, end_on_signals
from turnkeeper.store.embedded import EmbeddedDatabaseError

QUICK = Scale(rounds=1, turns=20, quick=True)
EPILOG = """\
examples:
  make bench                                        everything
  make bench BENCH_ARGS=--quick                     everything, roughly, in about 2 minutes
  make bench BENCH_ARGS="--only turns-16"           one measure
  make bench BENCH_ARGS="--only turns --rounds 3"   those whose names have this in them, 3 rounds
  make bench BENCH_ARGS="--only turns-1,replay"     two measures

Exit status: 0 measured, also when goals are missed; 1 a run that must not count; 2 it cannot start; 130 interrupted.
"""


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        epilog=EPILOG + "\nmeasures:\n" + "\n".join(f"  {each.name:16} {each.about}" for each in MEASURES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few rounds of few turns")
    parser.add_argument("--only", metavar="NAME,…", default="", help="only measures with one of these in their names")
    parser.add_argument("--rounds", type=int, help="rounds of each side (default: 5, quick: 1)")
    parser.add_argument("--turns", type=int, help="turns a round (default: 200, quick: 20)")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), metavar="FILE", help="%(default)s")
    asked = parser.parse_args()
    chosen = meant(asked.only)
    if not chosen:
        return _cannot(f"no measure has {asked.only!r} in its name; there are {', '.join(m.name for m in MEASURES)}")
    base = QUICK if asked.quick else Scale()
    scale = Scale(rounds=asked.rounds or base.rounds, turns=asked.turns or base.turns, quick=asked.quick)
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(run(chosen, scale, asked.out))
    except EmbeddedDatabaseError as error:
        return _cannot(str(error))
    print("\nbench: interrupted; everything that it started was ended", file=sys.stderr)
    return 130


def meant(only: str) -> list[Measure]:
    """The measures of names or parts of names, with commas between; a whole name means that one alone."""
    names = [each.name for each in MEASURES]
    wanted = {name for part in only.split(",") for name in names if (name == part if part in names else part in name)}
    return [each for each in MEASURES if each.name in wanted]


async def run(chosen: Sequence[Measure], scale: Scale, out: Path) -> int:
    """Measure, tell, and write; the exit status, 1 for a run that must not count."""
    end_on_signals()
    began, rows = time.monotonic(), list[Row]()
    if warning := busy():
        _tell(warning, lasting=True)
    try:
        async with Parts() as parts:
            for number, measure in enumerate(chosen, 1):
                _tell(f"{number} of {len(chosen)}: {measure.about}", lasting=True)
                rows += await measure.run(Bench(parts, scale, _tell))
    except Invalid as invalid:
        _tell("")
        print(f"bench: this run does not count: {invalid}", file=sys.stderr)
        return 1
    report.write(rows, GOALS, out)
    _tell("")
    print(f"{machine()}\n{report.table(rows, GOALS)}")
    print(f"{report.verdict(rows, GOALS)}; in {time.monotonic() - began:.0f} s; {out}")
    return 0


def _tell(text: str, *, lasting: bool = False) -> None:
    """A line that the next one replaces on a terminal; elsewhere only lasting ones."""
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
