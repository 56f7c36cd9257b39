"""Runs a program of the tests, as its make target does."""

import asyncio
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


async def run(module: str, *arguments: str | Path) -> tuple[int, str]:
    """Runs `python -m MODULE` to its end. Returns its exit status and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode is not None
    return process.returncode, output
