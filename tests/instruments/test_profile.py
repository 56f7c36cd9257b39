"""A very small profile of a real server."""

import asyncio
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(240)
async def test_a_profile_charges_the_servers_threads_and_packages(tmp_path: Path) -> None:
    out = tmp_path / "profile.txt"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.profile", "--turns", "60", "--out", str(out)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    profile = await asyncio.to_thread(out.read_text)
    assert float(profile.split()[0]) > 0
    for name in ("MainThread", "turnkeeper/engine", "(turnkeeper/rpc/"):
        assert name in profile
