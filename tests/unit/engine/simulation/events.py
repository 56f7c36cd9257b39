"""What may happen in the state machine: how often, when it is possible, and with which arguments."""

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from tests.unit.engine.simulation.outside import TOOLS

pick = st.integers(0, 5)
tools = st.lists(st.sampled_from(TOOLS), min_size=1, max_size=3)
holds = st.sampled_from((None, None, None, None, "commit", "commit", 2, 3))
"""Before which call of the store a caller's call waits: of this method, or of this number; None: it does not wait."""
ANSWERS = st.sampled_from(
    ("asks", "asks", "asks", "begins", "answer", "is cut", "fails", "fails for long", "fails for good")
)
claims = st.sampled_from(("begins", "begins", "freezes", "slow"))
"""Slow: the claim's answer does not come in time."""
usually = st.sampled_from((True, True, True, False))
choices = st.integers(0, 5)
responses = {"response": ANSWERS, "names": tools, "most": st.integers(1, 2)}


def _always(_: Any) -> bool:
    return True


EVENTS: Mapping[str, tuple[int, Callable[[Any], bool], Mapping[str, st.SearchStrategy[Any]]]] = {
    "work_on": (10, lambda machine: bool(machine.work_to_do()), responses),
    "decide": (
        10,
        lambda machine: bool(machine.pending()),
        {
            "number": pick,
            "choice": choices,
            "by": st.sampled_from(("ada", "bob")),
            "as_read": usually,
            "near": st.booleans(),
            "hold": holds,
        },
    ),
    "claim": (
        8,
        lambda machine: machine.claimable(),
        {"outcome": claims},
    ),
    "work": (
        4,
        lambda machine: bool(machine.work_to_do()),
        {"number": pick, "good": usually, "ok": usually, **responses},
    ),
    "arrive": (4, lambda machine: bool(machine.under_way), {"number": pick}),
    "send": (
        4,
        _always,
        {
            "number": pick,
            "request": st.integers(0, 7),  # few: many sends are repeats, some with another body
            "body": st.sampled_from(("hello", "hello", "other")),
            "if_busy": st.sampled_from(("REJECT", "ENQUEUE", "INTERRUPT", "WITHDRAW_PENDING")),
            "room": st.sampled_from(("room", "room", "full", "full", "slow")),
            "hold": holds,
        },
    ),
    "time_passes": (4, _always, {"seconds": st.sampled_from((31, 31, 31, 400, 1, 12, 22)), "sweep": usually}),
    "owner_goes": (
        2,
        lambda machine: bool(machine.owners()),
        {"number": pick, "how": st.sampled_from(("crash", "crash", "freeze", "drain", "cut", "defect"))},
    ),
    "owners_go": (
        1,
        lambda machine: bool(machine.owners()),
        {
            "number": pick,
            "times": st.integers(2, 6),
            "how": st.sampled_from(("crash", "freeze", "defect")),
            "outcome": claims,
        },
    ),
    "tools_time_out": (2, lambda machine: bool(machine.tool_owners()), {"number": pick}),
    "notify": (3, lambda machine: bool(machine.owners()), {"number": pick, "text": st.sampled_from(("", "partial"))}),
    "retry": (
        2,
        lambda machine: bool(machine.turns(ended=True)),
        {"number": pick, "request": st.integers(0, 10), "room": st.booleans(), "hold": holds},
    ),
    "cancel": (2, lambda machine: bool(machine.turns()), {"number": pick, "near": st.booleans(), "hold": holds}),
    "learn": (3, lambda machine: machine.is_to_learn(), {}),
    "renew": (1, lambda machine: bool(machine.owners()), {"number": pick}),
    "expire": (1, lambda machine: bool(machine.pending()), {"number": pick, "hold": holds}),
    "decide_again": (2, lambda machine: bool(machine.callers.decided), {"number": pick, "choice": choices}),
    "deploy": (1, _always, {"changed": st.booleans()}),
    "end_session": (1, lambda machine: len(machine.keys) < 4, {"number": pick, "hold": holds}),
}
"""Each is a method of the machine: its weight, a condition on the machine, its arguments."""
