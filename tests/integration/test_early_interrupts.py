"""Ctrl-C while a program starts: it ends with status 130 and prints nothing, whatever it was importing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.demo.ports import free_port

REPOSITORY = Path(__file__).parents[2]
INTERRUPT = """
import os, signal, sys
if {programs} in " ".join(sys.orig_argv):
    os.kill(os.getpid(), signal.SIGINT)
    print("it goes on")
sys.path.remove(os.path.dirname(__file__))
del sys.modules[__name__]
__import__(__name__)
"""
TURNKEEPER = ("-m", "turnkeeper")
SCRIPT = (str(Path(sys.executable).with_name("turnkeeper")),)
SERVE = ("serve", "--embedded", "--port", "0")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ((*TURNKEEPER, *SERVE), "argparse"),
        ((*TURNKEEPER, *SERVE), "pydantic"),
        ((*TURNKEEPER, *SERVE), "uvloop"),
        ((*SCRIPT, *SERVE), "argparse"),
        ((*SCRIPT, *SERVE), "pydantic"),
        ((*SCRIPT, "--version"), "email"),
        ((*SCRIPT, "model", "scripted"), "uvloop"),
        ((*TURNKEEPER, "model", "local"), "uvloop"),
        ((*SCRIPT, "dev"), "uvloop"),
        ((*SCRIPT, "dev"), "motor"),
        (("-m", "tests.demo"), "asyncio"),
        (("-m", "tests.demo"), "openai"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value).rpartition("/")[2],
)
def test_an_interrupted_import_ends_the_program(tmp_path: Path, command: tuple[str, ...], module: str) -> None:
    status, output = _run_interrupted(tmp_path, command, module, programs="")
    assert (status, output) == (130, "")


def test_an_interrupted_import_ends_the_supervisor(tmp_path: Path) -> None:
    command = (*TURNKEEPER, "serve", "--embedded", "--port", str(free_port()), "--processes", "2")
    assert _run_interrupted(tmp_path, command, "uvloop", programs="turnkeeper.supervision") == (130, "")


def _run_interrupted(folder: Path, command: tuple[str, ...], module: str, *, programs: str) -> tuple[int, str]:
    """Runs a program, with Ctrl-C when it imports the module, if its command line has `programs`.

    Returns its status, and what it printed.
    """
    (folder / f"{module}.py").write_text(INTERRUPT.format(programs=repr(programs)))
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(folder), "DATA": str(folder / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    return ended.returncode, ended.stdout
