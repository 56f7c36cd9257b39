"""`make setup` on a terminal: a pseudo-terminal, an empty home, and a copy of the checkout with nothing installed."""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
"""The packages come from uv's cache, which the test's own environment was installed from."""


def uv_cache() -> str:
    """Returns the folder of the cache that uv filled when this checkout was set up."""
    uv = ROOT / "build" / "boot" / "bin" / "uv"
    return subprocess.run([uv, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip()


def on_a_terminal(command: list[str], *, folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Runs a command on a pseudo-terminal. Returns its exit status and its output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 65536):
                output += chunk
        except OSError:  # Linux reports the end of the other side so
            pass
        finally:
            os.close(ours)
        return process.wait(), output.decode()


@pytest.mark.timeout(SECONDS)
def test_a_terminal_sees_a_set_up_of_at_most_six_lines(tmp_path: Path) -> None:
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    home.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            target = checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    env = {
        "HOME": str(home),
        "TERM": "xterm",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "UV_CACHE_DIR": uv_cache(),
    }
    env |= {name: value for name, value in os.environ.items() if name.endswith(("_INDEX_URL", "_CERT", "CERT_FILE"))}
    status, output = on_a_terminal(["make", "setup"], folder=checkout, env=env)
    assert status == 0, output
    lines = output.splitlines()
    assert len(lines) <= 6, output
    assert lines[-1].startswith("set-up: ready in "), output
    run = subprocess.run([checkout / ".venv/bin/turnkeeper", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout.strip(), "the project itself is installed"
