"""Sets the wall clocks of programs, by libfaketime: one clock for each program that is started with it."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CACHED: Final = 1.0
"""Seconds after which, at the latest, a program uses its clock's new setting."""
INSTALL: Final = "there is no libfaketime, which the clock faults need: apt-get install faketime (or: --without clock)"
_LIBRARIES: Final = ("libfaketimeMT.so.1",)
_FOLDERS: Final = ("/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/homebrew/lib")


class NoFaketime(Exception):
    """There is no libfaketime on this machine."""


def library() -> Path:
    """Returns the path of libfaketime. Raises NoFaketime, with the package to install."""
    for folder in _FOLDERS:
        for name in _LIBRARIES:
            path = next(iter((*Path(folder).glob(f"faketime/{name}"), *Path(folder).glob(f"*/faketime/{name}"))), None)
            if path is not None:
                return path
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
        """Sets the clock this many seconds ahead (or behind); the program uses it within CACHED seconds."""
        self.offset = seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.3f}\n")
        new.replace(self._file)

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables that the program is started with."""
        if self._preload is None:
            return {}
        return {
            "LD_PRELOAD": str(self._preload),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": f"{CACHED:g}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # With its fix for an old C library, an idle database uses a third of a processor.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }


def forget(pid: int) -> None:
    """Removes the shared memory that libfaketime leaves behind for a killed program."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        with contextlib.suppress(OSError):
            Path("/dev/shm", name).unlink()
