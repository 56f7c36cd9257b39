"""The kind of each method, by which an overloaded replica refuses calls."""

from typing import Final

from turnkeeper.admission.gate import Kind
from turnkeeper.limits.profile import Group

ADD_TURNS: Final = frozenset({"SendMessage", "StreamMessage", "RetryTurn"})
"""The methods that ask for a turn."""
ADD_WORK: Final = ADD_TURNS | {"CreateSession", "ForkSession", "RestoreCheckpoint"}
"""The methods that are refused with messages."""
CREATE: Final = frozenset({"CreateSession", "ForkSession"})
"""The methods that create a session, and do nothing else."""
MAY_WAIT: Final = frozenset({"SendMessage", "GetTurn", "WaitApproval"})
READS: Final = ("Count", "Get", "List", "Wait")


def kind_of(method: str, *, is_stream: bool) -> Kind:
    """Returns the kind of one of our methods. `is_stream`: it has many responses."""
    if method in ADD_WORK:
        return Kind.MESSAGE
    if is_stream:
        return Kind.WATCH
    return Kind.READ if method.startswith(READS) else Kind.DECISION


def group_of(method: str, *, is_stream: bool) -> Group:
    """Returns the methods with which one of ours shares a limit."""
    if method in CREATE:
        return Group.CREATES
    if method in ADD_TURNS:
        return Group.MESSAGES
    return Group.READS if is_stream or method.startswith(READS) else Group.CHANGES


def may_wait(method: str) -> bool:
    """Returns True for a method of one response that may wait for a turn or a decision."""
    return method in MAY_WAIT


def adds_turn(method: str) -> bool:
    """Returns True for a method that asks for a turn."""
    return method in ADD_TURNS
