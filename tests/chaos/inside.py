"""`python -m tests.chaos.inside serve …` is `turnkeeper serve …` with a Unix socket for the harness.

Its commands return the server's clock, arm a named fault, and block the event loop; a line each, answered by a line.
"""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

from turnkeeper import __main__ as program
from turnkeeper import faults

DOOR: Final = "TURNKEEPER_CHAOS_DOOR"
_blocked = threading.Event()
_seconds = [0.0]


def main() -> int:
    """Opens the socket, and runs the server."""
    door = os.environ.pop(DOOR)
    if "faketime" in os.environ.get("LD_PRELOAD", ""):
        # libfaketime 0.9.10 knows no clock_nanosleep, and every sleep would raise.
        time.sleep = _sleep  # type: ignore[assignment]
    signal.signal(signal.SIGUSR2, _block)
    threading.Thread(target=_serve, args=(door,), daemon=True, name="door").start()
    return program.main(sys.argv[1:])


def _serve(door: str) -> None:
    Path(door).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(door)
        listener.listen()
        while True:
            caller, _ = listener.accept()
            with caller, caller.makefile("rw") as line:
                line.write(_answer(*line.readline().split()) + "\n")


def _answer(command: str, *words: str) -> str:
    match command:
        case "clock":
            return str(time.time())
        case "arm":
            return ",".join(faults.arm({faults.VARIABLE: words[0]}))
        case "block":
            _seconds[0] = float(words[0])
            _blocked.clear()
            os.kill(os.getpid(), signal.SIGUSR2)
            return "blocked" if _blocked.wait(2) else "it goes on"
    return f"no such command: {command}"


def _block(_number: int, _frame: object) -> None:
    """Blocks the main thread, which runs the event loop; the other threads go on."""
    _blocked.set()
    time.sleep(_seconds[0])


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


if __name__ == "__main__":
    sys.exit(main())
