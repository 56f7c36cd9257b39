"""How a run reads take-overs from the log."""

from tests.chaos.history import Logged
from tests.mesh.faults import mixed
from tests.mesh.findings import Fault
from tests.mesh.stage import Open
from tests.mesh.takeovers import MODEL, OTHER, TOOL, never_taken_over, superseded_between, takeovers
from turnkeeper.pb.v1 import event_pb2

LOST = 100.0


def log_of(turn: str, *kinds: str, walls: dict[int, float] | None = None) -> list[Logged]:
    """Returns a log of these events, one a second from LOST - 10 on; `walls`: other times, by number."""
    return [
        Logged(
            session=f"amber/{turn}",
            sequence=number,
            kind=kind,
            turn=turn,
            fence=1,
            hash="",
            wall=(walls or {}).get(number, LOST - 10 + number),
            event=event_pb2.Event(),
        )
        for number, kind in enumerate(kinds, 1)
    ]


def killed(*turns: str) -> Fault:
    return Fault(kind="killed", replica="replica-1", began=LOST, open=Open(20, 20), turns=frozenset(turns), out=1.0)


def test_a_take_over_is_timed_from_the_loss_and_has_what_the_owner_was_doing() -> None:
    begun = ("message_received", "turn_started")
    called = (*begun, "message_completed", "tool_called")
    logs = {
        "in the model": log_of("a", *begun, "attempt_superseded", walls={3: LOST + 4}),
        "in a tool": log_of("b", *called, "tool_started", "attempt_superseded", walls={6: LOST + 6}),
        "back": log_of("c", *called, "tool_started", "tool_returned", "attempt_superseded", walls={7: 107}),
        "between": log_of("d", *called, "attempt_superseded", walls={5: LOST + 8}),
    }
    taken_over = takeovers(logs, [killed("a", "b", "c", "d")])
    assert [(one.turn, one.during, one.seconds) for one in taken_over] == [
        ("a", MODEL, 4.0),
        ("b", TOOL, 6.0),
        ("c", MODEL, 7.0),
        ("d", OTHER, 8.0),
    ]


def test_a_hand_over_before_the_loss_is_none_of_its_take_overs() -> None:
    logs = {"s": log_of("a", "turn_started", "attempt_superseded", "turn_completed")}
    assert takeovers(logs, [killed("a")]) == []
    assert superseded_between(logs, LOST - 9, LOST) == 1
    assert superseded_between(logs, LOST, LOST + 60) == 0


def test_a_turn_that_neither_went_on_nor_ended_is_found() -> None:
    logs = {
        "ended": log_of("a", "turn_started", "turn_completed"),
        "went on": log_of("b", "turn_started", "attempt_superseded", walls={2: LOST + 1}),
        "stuck": log_of("c", "turn_started"),
    }
    assert never_taken_over(logs, [killed("a", "b", "c")]) == ["c"]


def test_a_replica_is_lost_only_while_enough_of_its_turns_are_in_a_tool_and_in_the_model() -> None:
    assert mixed({TOOL: 10, MODEL: 14, OTHER: 1}, 24)
    assert mixed({TOOL: 16, MODEL: 12}, 24)
    assert not mixed({TOOL: 9, MODEL: 16}, 24), "0.36 of them in a tool"
    assert not mixed({TOOL: 16, MODEL: 9}, 24)
    assert not mixed({TOOL: 10, MODEL: 10}, 24), "too few"
    assert not mixed({MODEL: 30}, 24)
    assert mixed({}, 0), "where the fault takes no turns"
