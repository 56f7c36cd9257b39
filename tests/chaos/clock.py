"""Wall clocks that can be set, by libfaketime: one for each program that is started with it."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CACHED: Final = 1.0
"""Seconds after which a program has seen its clock's new setting at the latest."""
INSTALL: Final = "there is no libfaketime, which the clock faults need: apt-get install faketime (or: --without clock)"
_LIBRARIES: Final = ("libfaketimeMT.so.1",)
_FOLDERS: Final = ("/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/homebrew/lib")


class NoFaketime(Exception):
    """There is no libfaketime on this machine."""


def library() -> Path:
    """Where libfaketime is. Raises NoFaketime, which says what to install."""
    for folder in _FOLDERS:
        for name in _LIBRARIES:
            found = next(iter((*Path(folder).glob(f"faketime/{name}"), *Path(folder).glob(f"*/faketime/{name}"))), None)
            if found is not None:
                return found
    raise NoFaketime(INSTALL)


class Clock:
    """The wall clock of one program; 0 is the right time. Its monotonic clock stays the machine's."""

    def __init__(self, file: Path, *, preload: Path | None) -> None:
        """`preload` is libfaketime; without it the clock is the machine's and cannot be set."""
        self._file = file
        self._preload = preload
        self.offset = 0.0
        self.set(0)

    def set(self, seconds: float) -> None:
        """So far ahead from now on, or behind; the program sees it within CACHED."""
        self.offset = seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}\n")
        new.replace(self._file)

    @property
    def variables(self) -> Mapping[str, str]:
        """What the program is started with."""
        if self._preload is None:
            return {}
        return {
            "LD_PRELOAD": str(self._preload),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": f"{CACHED:g}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # With its mend for an old C library a database at rest uses a third of a processor.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }


def forget(pid: int) -> None:
    """Remove what libfaketime leaves behind in shared memory for a program that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        with contextlib.suppress(OSError):
            Path("/dev/shm", name).unlink()
