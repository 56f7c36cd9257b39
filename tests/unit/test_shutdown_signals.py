"""What a signal does while nothing handles it, also in the first process of a container."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
if sys.argv[1] == "first":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the kernel treats the default of process 1
    os.getpid = lambda: 1
from turnkeeper import interrupts
interrupts.by_default(signal.SIGTERM)
signal.raise_signal(signal.SIGTERM)
print("it goes on")
"""


@pytest.mark.parametrize(("process", "status"), [("first", 128 + signal.SIGTERM), ("another", -signal.SIGTERM)])
def test_a_signal_ends_a_server_that_still_starts(process: str, status: int) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, process], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (status, "")
