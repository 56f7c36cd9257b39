"""No program of the harness outlives it."""

import asyncio
import signal
import sys
from pathlib import Path

from tests.chaos.programs import REPOSITORY, Program
from tests.processes import alive, until

_PARENT = """
import signal, sys, time
from pathlib import Path
from tests.chaos.programs import Program
folder = Path(sys.argv[1])
run = "import time; print('runs', flush=True); time.sleep(600)"
for name in ("runs", "stopped"):
    program = Program(name, [sys.executable, "-c", run], log=folder / name, environ={})
    program.start()
    while not program.log.read_text():
        time.sleep(0.01)
    (folder / f"{name}.pid").write_text(str(program.pid))
    if name == "stopped":
        program.send(signal.SIGSTOP)
        while not program.stopped:
            time.sleep(0.01)
(folder / "ready").touch()
time.sleep(600)
"""


async def test_what_it_started_dies_with_a_killed_harness_even_when_it_is_stopped(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(tmp_path), env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'service'}"}
    )
    try:
        await until((tmp_path / "ready").exists, timeout=30)
        pids = [int((tmp_path / f"{name}.pid").read_text()) for name in ("runs", "stopped")]
        assert all(alive(pid) for pid in pids)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_a_killed_program_has_its_status_and_can_be_started_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
    program = Program("sleeper", command, log=tmp_path / "log", environ={})
    program.start()
    try:
        await program.until_line("ready")
        first = program.pid
        assert await program.kill() == -signal.SIGKILL
        program.start()
        assert await program.until_line("ready") == "ready"
        assert program.pid != first
        program.send(signal.SIGSTOP)
        await until(lambda: program.stopped)
        assert await program.end() == -signal.SIGTERM
    finally:
        await program.kill_if_running()
