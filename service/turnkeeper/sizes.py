"""Reads and writes sizes of memory as people do (512MiB, 2GiB), and finds out how much the machine gives."""

import os
import re
from pathlib import Path
from typing import Final, Self

EXAMPLES: Final = "512MiB or 2GiB"
_FORM: Final = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
"""Bytes of each unit."""
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


class Size(int):
    """Bytes of memory. Its text is what `parse` reads as this size."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the size. Raises ValueError if the text is not a number with a unit."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a size such as {EXAMPLES}")
        return cls(float(match[1]) * _UNITS[match[2]])

    def __str__(self) -> str:
        """Returns the size in the largest unit in which it is a whole number."""
        unit = next(unit for unit in reversed(_UNITS) if not self % _UNITS[unit])
        return f"{self // _UNITS[unit]}{unit}"


def of_machine(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Size:
    """Returns the memory that this process may use at most: that of the machine, or of a control group it is in.

    `cgroups` is where groups of version 2 or 1 are mounted, and `own` names those of the process.
    """
    return Size(min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(cgroups, own)]))


def _limits(cgroups: Path, own: Path) -> list[int]:
    """Returns the limits of the process's groups, and of those that hold them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits: list[int] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's: what is mounted there is then the group itself, at its root.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # the root of version 2 has no limit, and `max` is none
                continue
    return limits
