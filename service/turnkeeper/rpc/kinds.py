"""The kind of each method, by which an overloaded replica refuses calls."""

from typing import Final

from turnkeeper.admission.gate import Kind

ADD_TURNS: Final = frozenset({"SendMessage", "StreamMessage", "RetryTurn"})
"""The methods that ask for a turn."""
ADD_WORK: Final = ADD_TURNS | {"CreateSession", "ForkSession", "RestoreCheckpoint"}
"""The methods that are refused with messages."""
READS: Final = ("Get", "List", "Wait")


def kind_of(method: str, *, is_stream: bool) -> Kind:
    """Returns the kind of one of our methods. `is_stream`: it has many responses."""
    if method in ADD_WORK:
        return Kind.MESSAGE
    if is_stream:
        return Kind.WATCH
    return Kind.READ if method.startswith(READS) else Kind.DECISION


def adds_turn(method: str) -> bool:
    """Returns True for a method that asks for a turn."""
    return method in ADD_TURNS
