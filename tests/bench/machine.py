"""Describes the machine of a run."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

from turnkeeper.store.embedded import find_mongod

_PACKAGES: Final = ("grpcio", "protobuf", "openai", "aiohttp", "motor", "pymongo", "uvloop", "orjson")


def machine() -> str:
    """Returns processor, cores, memory, kernel and versions, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, mongod {_mongod()}, {versions}"
    )


def busy() -> str:
    """Returns a warning if other programs use the machine, otherwise an empty string."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine is busy (load {load:.1f} on {cores} cores): figures will be high" if load > cores / 2 else ""


def _processor() -> str:
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.machine()


def _mongod() -> str:
    version_text = subprocess.run([find_mongod(), "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v(\d+\.\d+\.\d+)", version_text)
    return match[1] if match else "unknown"
