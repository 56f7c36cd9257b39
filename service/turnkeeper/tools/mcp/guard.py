"""The guard of an MCP server's process: no process that the server started outlives the replica.

The replica starts this program, which starts the server. The guard ends with the server, or when the replica ends it by
SIGTERM, or when the replica dies, even by kill -9. Then it kills all that the server started, also what left its group.

It runs without the service's packages: `python -I -S guard.py REPLICA-PID COMMAND…`.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

GRACE = 1.0
"""Seconds from SIGTERM to SIGKILL."""
KILL_TIME = 3.0
"""Seconds for the killed to end, at most: one that waits for a device may take longer than any replica waits."""
NOT_FOUND = 127
"""The exit status if the command cannot be started, as that of a shell."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main() -> int:
    """Runs the server to its end, and returns its exit status; 128 and a signal's number if that ended it."""
    replica, command = int(sys.argv[1]), sys.argv[2:]
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what loses its parent becomes a child of the guard
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != replica:  # it died before
        return 1
    server = os.fork()
    if server == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(command)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # the server alone holds the pipes, so that their ends are seen
        os.dup2(nothing, stream)
    status = _wait(server)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGTERM)
        status = _wait(server, until=time.monotonic() + GRACE)
    _kill_the_rest()
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(command: list[str]) -> None:
    """Runs the server in this process. Does not return."""
    try:
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execv(command[0], command)  # noqa: S606 - no shell is meant
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(NOT_FOUND)


def _wait(server: int, until: float | None = None) -> int | None:
    """Returns the wait status of the server once it has ended; None at SIGTERM, or at `until` if that is given."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == server:
                    return ended[1]
        if until is None:
            if signal.sigwait(_SIGNALS) != signal.SIGCHLD:
                return None
        elif signal.sigtimedwait({signal.SIGCHLD}, max(0.0, until - time.monotonic())) is None:
            return None


def _kill_the_rest() -> None:
    """Kills the children, then theirs, which become children of this process, until none is left."""
    me = os.getpid()
    until = time.monotonic() + KILL_TIME
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < until:
            with contextlib.suppress(OSError), open(f"/proc/{me}/task/{me}/children") as children:  # noqa: PTH123
                for child in children.read().split():
                    os.kill(int(child), signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
