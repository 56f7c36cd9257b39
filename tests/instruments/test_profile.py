"""A very small profile of a real server."""

import asyncio
from pathlib import Path

import pytest

from tests.instruments import program


@pytest.mark.timeout(240)
async def test_a_profile_charges_the_servers_threads_and_packages(tmp_path: Path) -> None:
    out = tmp_path / "profile.txt"
    status, output = await program.run("tests.bench.profile", "--turns", "60", "--out", out)
    assert status == 0, output
    profile = await asyncio.to_thread(out.read_text)
    assert float(profile.split()[0]) > 0
    for name in ("MainThread", "turnkeeper/engine", "(turnkeeper/rpc/"):
        assert name in profile
