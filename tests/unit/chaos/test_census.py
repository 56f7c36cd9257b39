"""The count of processes of MCP servers finds one that outlives its replica."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.services.catalogue import OVER_STDIO
from tests.chaos.services.census import LONGEST, Census

GUARD = "/somewhere/turnkeeper/tools/mcp/guard.py"


@contextlib.contextmanager
def a_process(*words: str) -> Iterator[int]:
    """Runs a process with these words in its command, and yields its pid."""
    command = [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # from here on the kernel shows its command
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def dead() -> int:
    """The pid of a process that has ended."""
    with a_process() as pid:
        pass
    return pid


def test_a_process_whose_replica_lives_is_in_order(tmp_path: Path) -> None:
    census = Census(tmp_path)
    with a_process(GUARD, str(os.getpid()), OVER_STDIO, "shed", str(tmp_path)):
        assert [process.replica for process in census.count(at=0.0)] == [os.getpid()]
        assert len(census.count(at=2 * LONGEST)) == 1
    assert census.outlived == {}


def test_a_process_that_outlives_its_replica_is_found(tmp_path: Path, dead: int) -> None:
    census = Census(tmp_path)
    with a_process(GUARD, str(dead), OVER_STDIO, "shed", str(tmp_path)) as pid:
        census.count(at=0.0)
        census.count(at=LONGEST)
        assert census.outlived == {}
        census.count(at=LONGEST + 1)
        assert census.outlived == {pid: LONGEST + 1}


def test_a_server_that_has_lost_its_guard_is_found(tmp_path: Path) -> None:
    census = Census(tmp_path)
    with a_process(OVER_STDIO, "shed", str(tmp_path)) as pid:
        assert [process.replica for process in census.count(at=0.0)] == [0]
        census.count(at=LONGEST + 1)
        assert (census.pids, set(census.outlived)) == ({pid}, {pid})


def test_processes_of_another_run_and_other_servers_do_not_count(tmp_path: Path) -> None:
    census = Census(tmp_path)
    with a_process(OVER_STDIO, "shed", str(tmp_path / "other")), a_process("other", "desk", str(tmp_path)):
        assert census.count(at=0.0) == []
