"""What the operator's calls ask of a store; a part of its contract."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.turn import Turn, TurnState


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFilter:
    """Which of the turns that have not ended; empty fields do not filter."""

    agent: str = ""
    tool: str = ""
    """A tool of which the turn has an open call."""
    states: tuple[TurnState, ...] = ()
    created_before: datetime | None = None
    session_id: str = ""
    principal: str = ""

    def fits(self, turn: Turn, tools: tuple[str, ...]) -> bool:
        """Returns True if the turn matches; `tools` are those of its open calls."""
        return (
            self.agent in ("", turn.agent)
            and self.principal in ("", turn.principal)
            and self.session_id in ("", turn.session_id)
            and (not self.states or turn.state in self.states)
            and (self.created_before is None or turn.create_time <= self.created_before)
            and (not self.tool or self.tool in tools)
            and not turn.state.ended
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTurn:
    """A turn that runs, waits or is queued."""

    turn: Turn
    tools: tuple[str, ...]
    """The tools of its open calls, each once."""
    owner: str
    """The replica that owns it; empty for none."""
    cancelling: bool
    """Its owner is to cancel it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A replica, by what it publishes."""

    name: str
    heartbeat: datetime
    """The last one, by the store's clock."""
    alive: bool
    turns: int
    """How many turns it owns."""


class OperationStore(Protocol):
    """What operators see and change."""

    async def active_turns(
        self, tenant: str, where: TurnFilter, *, limit: int, after: tuple[str, str] | None
    ) -> Sequence[ActiveTurn]:
        """Returns a page ordered by session and turn id, beyond `after`: turns that run, wait or are queued.

        Leaves out deleted sessions, and what only a newer version can read.
        """
        ...

    async def freezes(self) -> Sequence[Freeze]:
        """Returns the freezes of all tenants."""
        ...

    async def put_freeze(self, freeze: Freeze, record: AuditRecord) -> bool:
        """Stores a freeze together with its record. Returns False, with nothing stored, if there is one."""
        ...

    async def remove_freeze(self, tenant: str, agent: str, record: AuditRecord) -> bool:
        """Removes a freeze, and stores the record. Returns False, with nothing stored, if there is none."""
        ...

    async def denials(self) -> Sequence[ToolDenial]:
        """Returns the denials of tools of all tenants that are in force by the database's clock."""
        ...

    async def put_denial(self, denial: ToolDenial, record: AuditRecord) -> None:
        """Stores a denial together with its record. It takes the place of one of the same pattern."""
        ...

    async def remove_denial(self, tenant: str, pattern: str, record: AuditRecord) -> bool:
        """Removes a denial, and stores the record. Returns False, with nothing stored, if there is none."""
        ...

    async def replicas(self) -> Sequence[ReplicaState]:
        """Returns the replicas by name. One that ended in order is left out; one that was lost, seven days later."""
        ...
