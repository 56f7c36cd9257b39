"""Named places where a test may kill or stop this process; unless one is armed, passing a place costs one test.

`TURNKEEPER_TEST_FAULTS` arms them: `NAME=ACTION` or `NAME=ACTION@N`, with commas between. `kill` is SIGKILL, `stop` is
SIGSTOP, both by and for this process itself; `N` is the passage at which it happens, the first unless said; only once.
`tests/chaos/` runs a server through every one of them.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "TURNKEEPER_TEST_FAULTS"

NAMES: Final[Mapping[str, str]] = {
    "step.before_first_write": "a step's transaction is about to begin",
    "step.after_first_write": "the head is written, the rest is not",
    "step.before_commit": "everything is written, nothing is committed",
    "step.after_commit": "it is committed, and nobody here knows yet",
    "claim.after": "a turn was claimed, and nothing is done yet",
    "turn.model.before_call": "the model is about to be asked",
    "turn.model.first_delta": "the first piece of an answer is there",
    "turn.model.after_answer": "the answer is whole, and not stored",
    "turn.tool.before_start": "STARTED is stored, and the tool has not begun",
    "turn.tool.after_effect": "the tool has returned, and its result is not stored",
    "turn.before_end": "the step that ends the turn is about to be stored",
    "message.before_store": "a message is decided on, and not stored",
    "message.after_store": "a message is stored, and not acknowledged",
    "approval.before_store": "a decision is made, and not stored",
    "approval.after_store": "a decision is stored, and not acknowledged",
    "fork.before_commit": "a fork's log is copied, and the step that makes it visible has not begun",
    "renew.before": "a lease is about to be renewed",
    "sweep.before_requeue": "the sweeper is about to look for lapsed leases",
    "trim.before_delete": "a log's beginning is said to be gone, and nothing is deleted",
    "purge.before_delete": "a session is marked as purged, and all of it is still there",
    "purge.before_end": "nothing of a purged session is left but its own document and its head",
}
"""Every place, and what is true there."""

_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class _Armed:
    signal: signal.Signals
    left: int


_armed: dict[str, _Armed] = {}


def fault(name: str) -> None:
    """A place that has a name."""
    if _armed:
        _pass(name)


def arm(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Arm what the variable says; the names. Raises ValueError for one that does not exist."""
    _armed.clear()
    for each in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, what = each.partition("=")
        action, _, count = what.partition("@")
        if name not in NAMES or action not in _ACTIONS or not (count or "1").isdecimal():
            raise ValueError(f"{VARIABLE} is NAME=kill or NAME=stop, @N for the N-th passage; {each!r} is not")
        _armed[name] = _Armed(_ACTIONS[action], max(1, int(count or "1")))
    return tuple(_armed)


def _pass(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    armed.left -= 1
    if armed.left == 0:
        del _armed[name]
        os.kill(os.getpid(), armed.signal)
