"""Fault points: named places in the code where a test can make this process kill or stop itself.

`TURNKEEPER_TEST_FAULTS` arms them: `NAME=ACTION` or `NAME=ACTION@N`, separated by commas. The action `kill` is SIGKILL,
`stop` is SIGSTOP. It happens once, when the process reaches the point for the N-th time (default 1). While none is
armed, a point costs one check of an empty dictionary. `tests/chaos/` runs a server through every point.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VARIABLE: Final = "TURNKEEPER_TEST_FAULTS"

NAMES: Final[Mapping[str, str]] = {
    "step.before_first_write": "the transaction of a changeset is about to begin",
    "step.after_first_write": "the head is written, the rest is not",
    "step.before_commit": "everything is written, nothing is committed",
    "step.after_commit": "it is committed, and this process does not know yet",
    "claim.after": "a turn was claimed, and nothing is done yet",
    "turn.model.before_call": "the model is about to be called",
    "turn.model.first_delta": "the first chunk of an answer has come",
    "turn.model.after_answer": "the answer is complete, and not stored",
    "turn.tool.before_start": "STARTED is stored, and the tool has not started",
    "turn.tool.after_effect": "the tool has returned, and its result is not stored",
    "turn.before_end": "the changeset that ends the turn is about to be stored",
    "message.before_store": "a message is about to be decided on and stored",
    "message.after_store": "a message is stored, and not acknowledged",
    "approval.before_store": "an approval's decision is about to be stored",
    "approval.after_store": "an approval's decision is stored, and not acknowledged",
    "fork.before_commit": "a fork's log is copied, and the transaction that makes it visible has not begun",
    "renew.before": "a lease is about to be renewed",
    "sweep.before_requeue": "the sweeper is about to re-queue turns whose leases have lapsed",
    "trim.before_delete": "a log's beginning is marked as trimmed, and nothing is deleted",
    "purge.before_delete": "a session is marked as purged, and nothing of it is deleted",
    "purge.before_end": "of a purged session, only its own document and its head are left",
}
"""Every fault point, and what has happened when the process reaches it."""

_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True)
class _Armed:
    signal: signal.Signals
    left: int


_armed: dict[str, _Armed] = {}


def fault(name: str) -> None:
    """Marks a fault point. Kills or stops this process if a test armed it."""
    if _armed:
        _strike(name)


def is_armed(name: str) -> bool:
    """Returns True if a test armed the fault point, and it has not struck yet."""
    return name in _armed


def arm(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Arms the points that the variable names, and returns their names. Raises ValueError for an unknown one."""
    _armed.clear()
    for entry in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, rest = entry.partition("=")
        action, _, count = rest.partition("@")
        if name not in NAMES or action not in _ACTIONS or not (count or "1").isdecimal():
            raise ValueError(f"{VARIABLE}: {entry!r} is not NAME=kill or NAME=stop, with @N for the N-th passage")
        _armed[name] = _Armed(_ACTIONS[action], max(1, int(count or "1")))
    return tuple(_armed)


def _strike(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    armed.left -= 1
    if armed.left == 0:
        del _armed[name]
        os.kill(os.getpid(), armed.signal)
