"""A flood stays on this machine, and ends."""

from pathlib import Path

import pytest

from tests.chaos import flood


@pytest.mark.parametrize(
    ("address", "rate", "seconds"),
    [("192.0.2.1:50051", 10.0, 1.0), ("127.0.0.1:50051", 2000.0, 1.0), ("127.0.0.1:50051", 10.0, 60.0)],
)
async def test_a_flood_of_another_machine_or_without_a_bound_does_not_begin(
    address: str, rate: float, seconds: float, tmp_path: Path
) -> None:
    out = tmp_path / "flood.jsonl"
    with pytest.raises(ValueError, match=r"machine|at most"):
        await flood.run(addresses=[address], identity=tmp_path, seed=1, rate=rate, seconds=seconds, out=out)
    assert not out.exists()
