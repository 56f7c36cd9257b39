"""`python -m tests.bench.profiled serve …` runs `turnkeeper serve …`, sampled between SIGUSR1 and SIGUSR2.

Each 5 ms of the process's CPU time, every thread's stack is charged with the CPU time that the thread has used since
the last sample, by its own clock. What is charged is exact; where it is charged is where the thread was found. Only the
event loop's thread is found in the middle of its work; the others often after it. On SIGUSR2 the stacks are written to
the file that TURNKEEPER_BENCH_PROFILE names.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import orjson

from turnkeeper import __main__ as program

FILE: Final = "TURNKEEPER_BENCH_PROFILE"
INTERVAL: Final = 0.005
_THREAD_CLOCK: Final = 6
"""CPUCLOCK_SCHED of one thread."""

Stack = tuple[CodeType, ...]


class Sampler:
    """Adds up CPU time by thread and stack."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._used: dict[int, float] = {}
        self._spent: dict[tuple[str, Stack], float] = {}
        self._busy = False

    def start(self, *_: object) -> None:
        self._used = {thread: _cpu(thread) for thread in _threads()}
        self._spent.clear()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def sample(self, _number: int, interrupted: FrameType | None) -> None:
        """Runs on the main thread, between two instructions of what it was doing."""
        if self._busy:  # a destructor that ran meanwhile was interrupted, too
            return
        self._busy = True
        frames = sys._current_frames()  # noqa: SLF001 - there is no public way
        # threading.enumerate() takes a lock that the interrupted function may hold.
        python = {thread.native_id: (thread.name, thread.ident) for thread in list(threading._active.values())}  # type: ignore[attr-defined]  # noqa: SLF001
        for thread in _threads():
            now = _cpu(thread)
            used, self._used[thread] = now - self._used.get(thread, 0.0), now
            if not used:
                continue
            name, ident = python.get(thread, (_comm(thread), None))
            main = thread == os.getpid()
            at = name, _stack(interrupted if main else frames.get(ident or 0))
            self._spent[at] = self._spent.get(at, 0.0) + used
        self._used[os.getpid()] = _cpu(os.getpid())  # the sampler's own time is charged to no stack
        self._busy = False

    def stop(self, number: int, interrupted: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.sample(number, interrupted)
        rows = [[name, [_place(code) for code in stack], spent] for (name, stack), spent in self._spent.items()]
        part = self._file.with_suffix(".part")
        part.write_bytes(orjson.dumps(rows))
        part.rename(self._file)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208 - quicker


def _cpu(thread: int) -> float:
    try:
        return time.clock_gettime((~thread << 3) | _THREAD_CLOCK)
    except OSError:  # it has ended
        return 0.0


def _comm(thread: int) -> str:
    try:
        return Path(f"/proc/self/task/{thread}/comm").read_text().strip()
    except OSError:
        return "ended"


def _stack(frame: FrameType | None) -> Stack:
    """Innermost first."""
    stack = []
    while frame is not None:
        stack.append(frame.f_code)
        frame = frame.f_back
    return tuple(stack)


def _place(code: CodeType) -> str:
    return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


def main() -> int:
    sampler = Sampler(Path(os.environ[FILE]))
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR1, sampler.start)
    signal.signal(signal.SIGUSR2, sampler.stop)
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
