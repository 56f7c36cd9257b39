"""`make mesh`: the shipped files for Envoy, with a real Envoy, while things break.

64 callers of two tenants stream, wait and read through a real Envoy, by TLS and
with tokens. Meanwhile replicas are restarted, killed, frozen and replaced by a
program that never answers, the database is frozen, certificates are renewed.
"""

import argparse
import asyncio
import contextlib
import sys
import textwrap
import time
from pathlib import Path
from typing import Final

from tests.bench.machine import busy
from tests.bench.parts import cancel_on_signals
from tests.mesh import shipped_files
from tests.mesh.envoy import NoEnvoy
from tests.mesh.findings import Findings
from tests.mesh.phases import PHASES
from tests.mesh.report import table
from tests.mesh.run import REPORT, Options, Run, write
from turnkeeper.store.embedded import EmbeddedDatabaseError

_LISTED: Final = "\n".join(f"  {name:10} {about}" for name, about in PHASES.items())
EPILOG: Final = f"""\
phases:
{_LISTED}

examples:
  make mesh                                   every fault, some eight minutes
  make mesh MESH_ARGS=--quick                 each fault once, some four minutes
  make mesh MESH_ARGS="--only answers kills"  two phases
  make mesh MESH_ARGS="--seed 2"              the replicas in another order
  make mesh MESH_ARGS="--files my-envoy"      another folder of Envoy's files:
                                              to see that its faults are found

Exit status: 0 every promise held; 1 one did not; 2 it cannot run;
130 interrupted.
"""
_WIDTH: Final = 80


def main() -> int:
    """Runs, prints the report, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mesh",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="decides the order of replicas and what callers do [1]")
    parser.add_argument("--quick", action="store_true", help="one replica for each fault; few turns are taken over")
    parser.add_argument("--only", nargs="+", choices=PHASES, metavar="PHASE", help="these phases alone")
    parser.add_argument("--files", type=Path, default=shipped_files.SHIPPED, metavar="DIR", help="[deploy/envoy]")
    parser.add_argument("--folder", type=Path, default=Options().folder, metavar="DIR", help="for logs [%(default)s]")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help="[%(default)s]")
    arguments = parser.parse_args()
    options = Options(
        seed=arguments.seed,
        quick=arguments.quick,
        phases=[name for name in PHASES if name in (arguments.only or PHASES)],
        files=arguments.files,
        folder=arguments.folder,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(_main(options, arguments.report))
    except (NoEnvoy, EmbeddedDatabaseError, RuntimeError, ValueError) as error:
        print(f"mesh: {error}", file=sys.stderr)
        return 2
    print("\nmesh: interrupted; every process that it started was stopped", file=sys.stderr)
    return 130


async def _main(options: Options, report: Path) -> int:
    cancel_on_signals()
    began = time.monotonic()

    def show(words: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        print(textwrap.fill(f"{minutes}:{seconds:02} {words}", _WIDTH, subsequent_indent=" " * 5), flush=True)

    if warning := busy():
        show(warning)
    findings: Findings = await Run(options, show).run()
    write(findings, options, to=report)
    print(table(findings))
    print(f"report: {report}; logs: {options.folder}")
    return 0 if findings.held else 1


if __name__ == "__main__":
    sys.exit(main())
