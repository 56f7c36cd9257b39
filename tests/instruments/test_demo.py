"""`make demo` passes, and finds each promise that is broken on purpose. The two run side by side."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.demo.breaks import Break
from tests.demo.program import children
from tests.demo.report import NEXT
from tests.processes import alive, until

REPOSITORY = Path(__file__).parents[2]
STEPS = 6
TIME = 90


def start(home: str, *flags: str, **variables: str) -> subprocess.Popen[str]:
    """Starts the demo, with no other variables set."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo", *flags],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": home, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def is_empty(folder: Path) -> bool:
    return not list(folder.iterdir())


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, subprocess.Popen[str]]]:
    """Starts one demo that passes, and one with all promises broken."""
    home = str(tmp_path_factory.mktemp("home"))
    everything = ",".join(Break)
    started = {"": start(home), everything: start(home, "-v", DEMO_BREAK=everything)}
    try:
        yield started
    finally:
        for demo in started.values():
            demo.terminate()
            demo.communicate(timeout=TIME)


@pytest.mark.timeout(TIME)
def test_every_step_passes(demos: Mapping[str, subprocess.Popen[str]]) -> None:
    output, _ = demos[""].communicate(timeout=TIME)
    lines = output.splitlines()
    assert any(line.startswith(f"demo: {STEPS} of {STEPS} steps passed, ") for line in lines), output
    assert demos[""].returncode == 0
    assert sum(line.startswith("ok  ") for line in lines) == STEPS, "a line a step"
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output
    assert [line.split("  ")[0] for line in filter(None, lines)][-len(NEXT) :] == [command for command, _ in NEXT]


@pytest.mark.timeout(TIME)
def test_each_broken_promise_is_seen_in_its_step(demos: Mapping[str, subprocess.Popen[str]]) -> None:
    demo = demos[",".join(Break)]
    output, _ = demo.communicate(timeout=TIME)
    failed = (
        "messages sent before the decision (lines in the tool's file)\n    expected: 0\n",
        "the first new delta begins at byte\n    expected: ",
        "another server finishes the turn\n    expected: its end within",
    )
    assert all(f"FAILED: {check}" in output for check in failed), output
    assert output.count("  FAILED: ") == len(failed)
    assert f"\ndemo: {STEPS - len(failed)} of {STEPS} steps passed, " in output
    assert "    ok  the turn ended: TURN_STATE_COMPLETED" in output, "-v shows each check"
    assert demo.returncode == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
async def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with start(str(tmp_path), TMPDIR=str(tmp_path)) as demo:
        assert demo.stdout is not None
        while not demo.stdout.readline().startswith("The steps"):
            assert demo.poll() is None
        started = children(demo.pid) | {model for server in children(demo.pid) for model in children(server)}
        demo.send_signal(number)
        demo.communicate(timeout=20)
    assert demo.returncode == status
    assert len(started) == 3  # the database, the server, its model
    await until(lambda: not any(alive(pid) for pid in started))
    assert number == signal.SIGKILL or is_empty(tmp_path)
