"""`make profile`: shows where the server's CPU time goes in a turn: by thread, by package, by function."""

import argparse
import asyncio
import contextlib
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from tests.bench.bench import Bench, Scale
from tests.bench.figures import Invalid
from tests.bench.parts import Parts, Served, cancel_on_signals
from tests.bench.profiled import FILE
from tests.processes import until
from turnkeeper.store.embedded import EmbeddedDatabaseError

OUT: Final = Path("build/profile.txt")
_NUMBERS: Final = re.compile(r"[-_ ]?\d+(_\d+)*$")
_ROOT: Final = r"(?:\S*/)?(?:lib/python3\.\d+/(?:site-packages/)?|service/)"
_PACKAGE: Final = re.compile(_ROOT + r"(?P<package>turnkeeper/\w+|\w+)")
_FRAME: Final = re.compile(
    r"<frozen runpy>|<module>|/threading\.py|/uvloop/|/bench/profiled\.py|turnkeeper/(?:__main__|command_line)"
)
"""Functions at the bottom of every stack, which are left out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU seconds of one thread at one stack, innermost function first."""

    thread: str
    stack: Sequence[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds of CPU a turn, by thread, by package and by function."""

    total: float
    threads: dict[str, float]
    packages: dict[str, float]
    own: dict[str, float]
    cumulative: dict[str, float]


def profile_of(samples: Iterable[Sample], *, turns: int) -> Profile:
    """Sums up each function's own time, with the C that it calls, and its time anywhere on the stack."""
    total, threads, packages, own, cumulative = 0.0, _Sums(), _Sums(), _Sums(), _Sums()
    for sample in samples:
        spent, thread = 1000 * sample.seconds / turns, _NUMBERS.sub("", sample.thread)
        total += spent
        threads[thread] += spent
        inner = sample.stack[0] if sample.stack else f"no Python ({thread})"
        packages[_package(inner) if sample.stack else inner] += spent
        own[inner] += spent
        for function in {inner, *(frame for frame in sample.stack if not _FRAME.search(frame))}:
            cumulative[function] += spent
    return Profile(total, threads, packages, own, cumulative)


def text_of(profile: Profile, *, most: int) -> str:
    """Returns the tables, with at most `most` functions each."""
    parts = [f"{profile.total:.2f} ms of CPU a turn"]
    for title, spent in (
        ("by thread", profile.threads),
        ("by package of the function, its own time", profile.packages),
        ("by function, its own time and that of the C it calls", profile.own),
        ("by function, with all that it calls", profile.cumulative),
    ):
        parts.append(f"\n{title}\n{'ms':>8}  {'share':>6}")
        parts += [f"{ms:8.3f}  {ms / profile.total:6.1%}  {_short(name)}" for name, ms in _largest(spent)[:most]]
    return "\n".join(parts)


async def run(*, turns: int, concurrency: int, message: str) -> Profile:
    """Profiles a server of its own under these turns."""
    cancel_on_signals()
    async with Parts() as parts:
        bench, file = Bench(parts, Scale(rounds=1, turns=turns), lambda _: None), parts.folder / "profile.json"
        async with parts.server("profiled", module="tests.bench.profiled", **{FILE: str(file)}) as server:
            await bench.turns(server, concurrency=concurrency, message=message, count=100)
            await bench.turns(server, concurrency=concurrency, message=message, around=_watching(server))
            await until(file.exists)
            samples = [Sample(*record) for record in orjson.loads(file.read_bytes())]
    return profile_of(samples, turns=turns)


@contextlib.contextmanager
def _watching(server: Served) -> Iterator[None]:
    server.program.send(signal.SIGUSR1)
    yield
    server.program.send(signal.SIGUSR2)


def main() -> int:
    """Profiles and prints the tables. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("--turns", type=int, default=400, help="turns to profile (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="turns at once (default: %(default)s)")
    parser.add_argument("--paced", action="store_true", help="a model with 20 ms between its chunks")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="%(default)s")
    options = parser.parse_args()
    message = "paced" if options.paced else "at once"
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            profile = asyncio.run(run(turns=options.turns, concurrency=options.concurrency, message=message))
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text_of(profile, most=100) + "\n", encoding="utf-8")
            print(text_of(profile, most=15))
            print(f"\nmore: {options.out}")
            return 0
    except (EmbeddedDatabaseError, Invalid) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 2 if isinstance(error, EmbeddedDatabaseError) else 1
    return 130


class _Sums(defaultdict[str, float]):
    def __init__(self) -> None:
        super().__init__(float)


def _largest(sums: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(sums.items(), key=lambda item: -item[1])


def _package(function: str) -> str:
    match = _PACKAGE.search(function)
    return match["package"] if match else "other"


def _short(function: str) -> str:
    return re.sub(rf"\({_ROOT}", "(", function)


if __name__ == "__main__":
    sys.exit(main())
