"""Decisions that are remembered for a session: what a vote may ask for, and what later calls are approved by."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

MOST_USES: Final = 10
"""Calls that one remembered decision approves, at most."""
LONGEST: Final = timedelta(days=1)
"""How long a decision is remembered, at most."""
PER_SESSION: Final = 16
"""Decisions that a session remembers at the same time; a newer one takes the place of the oldest."""


class RememberScope(StrEnum):
    """Which later calls a remembered decision is about: those of the tool, or those with exactly the same arguments."""

    TOOL = "TOOL"
    ARGUMENTS = "ARGUMENTS"


class RememberedState(StrEnum):
    """What became of a remembered decision: it was made, or a person revoked it."""

    ACTIVE = "ACTIVE"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberRequest:
    """What a decider asks for: that the decision counts for later calls, too."""

    scope: RememberScope
    time: timedelta
    """From the vote on; at most LONGEST."""
    uses: int
    """Later calls that it approves, at most MOST_USES."""

    def from_(self, now: datetime) -> "Remember":
        """Returns what a vote at this time of the database's clock asks for."""
        return Remember(scope=self.scope, expire_time=now + self.time, uses=self.uses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """What a vote asks for, as it is stored."""

    scope: RememberScope
    expire_time: datetime
    """By the database's clock."""
    uses: int
    """Later calls that it approves, at most MOST_USES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedDecision:
    """A decision that approves later calls of its session, and the event of it."""

    approval_id: str
    """The approval that was decided."""
    tool_call_id: str
    tool: str
    scope: RememberScope
    state: RememberedState = RememberedState.ACTIVE
    binding: str
    """Hexadecimal: what a call must have in common with the approved one; see `Call.binding` and `binding_for`."""
    expire_time: datetime
    """By the database's clock: calls that are requested later ask again."""
    uses_left: int
    """Calls that it still approves; from 1."""
    decided_by: tuple[str, ...]
    """The people whose votes decided the approval."""
    decided_through: str = ""
    """The delegate of the last vote; empty without one."""
    revoked_by: str = ""
    """The principal that revoked it; empty unless REVOKED."""

    def covers(self, binding: str, arguments_json: str, *, at: datetime) -> bool:
        """Returns True if it approves a call that is requested at `at`, by the database's clock.

        `binding` is the call's own, empty if its decisions are not remembered; `arguments_json` is canonical.
        """
        return (
            bool(binding) and self.binding == binding_for(self.scope, binding, arguments_json) and at < self.expire_time
        )


def binding_for(scope: RememberScope, binding: str, arguments_json: str) -> str:
    """Returns what a decision with this scope, on a call with this binding and these arguments, is bound to."""
    return hash_of([binding, arguments_json]) if scope is RememberScope.ARGUMENTS else binding


def remembered_from_votes(of_votes: Iterable[Remember | None]) -> Remember | None:
    """Returns what all the votes agree on: the narrowest scope, the earliest end, the fewest uses.

    Returns None if there is no vote, or one of them asks for nothing.
    """
    wishes: list[Remember] = []
    for remember in of_votes:
        if remember is None:
            return None
        wishes.append(remember)
    if not wishes:
        return None
    exactly = any(remember.scope is RememberScope.ARGUMENTS for remember in wishes)
    return Remember(
        scope=RememberScope.ARGUMENTS if exactly else RememberScope.TOOL,
        expire_time=min(remember.expire_time for remember in wishes),
        uses=min(remember.uses for remember in wishes),
    )


def with_remembered(known: tuple[RememberedDecision, ...], new: RememberedDecision) -> tuple[RememberedDecision, ...]:
    """Returns the decisions with a new one, newest first, PER_SESSION at most."""
    return (new, *known)[:PER_SESSION]


def with_one_use_less(known: tuple[RememberedDecision, ...], approval_id: str) -> tuple[RememberedDecision, ...]:
    """Returns the decisions after one of them has approved a call. It is gone after its last use."""
    used = (
        replace(decision, uses_left=decision.uses_left - 1) if decision.approval_id == approval_id else decision
        for decision in known
    )
    return tuple(decision for decision in used if decision.uses_left > 0)


def without(known: tuple[RememberedDecision, ...], approval_id: str) -> tuple[RememberedDecision, ...]:
    """Returns the decisions without this one."""
    return tuple(decision for decision in known if decision.approval_id != approval_id)


def hash_of(what: object) -> str:
    """Returns the SHA-256 (hexadecimal) of a value as JSON."""
    return hashlib.sha256(json.dumps(what, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
