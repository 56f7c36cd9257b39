"""A tool's server of the simulation: it keeps its keys, and tells what became of a call."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from tests.unit.engine.simulation.observed import Observed
from tests.unit.engine.simulation.outside import AGENT
from turnkeeper.domain.tool import ReconciledState, ToolClass, ToolSpec
from turnkeeper.tools.contract import (
    CannotReconcile,
    NotStarted,
    OutcomeUnknown,
    Reconciled,
    SourceUnreachable,
    StillRunning,
    ToolContext,
)

LEDGER: Final = "ledger"
"""The source's name."""
RETRY_AFTER: Final = timedelta(seconds=2)


@dataclass(slots=True, eq=False)
class OnTheWay:
    """A call that has left its replica, or is about to, and has not reached the server."""

    context: ToolContext
    arrives: "asyncio.Future[None]"


@dataclass(slots=True, eq=False)
class Transfer:
    """A call that runs at the server."""

    context: ToolContext
    ends: "asyncio.Future[str]"


@dataclass(slots=True, eq=False)
class LedgerServer:
    """The server, one for all replicas."""

    holds: bool = False
    """Calls wait on their way until the test lets them arrive."""
    is_down: bool = False
    """No request to tell what became of a call gets an answer."""
    cannot_tell: bool = False
    """It has no such method."""
    breaks_its_promise: bool = False
    """It starts what it has promised not to start."""
    effects: "Counter[str]" = field(default_factory=Counter)
    """By key."""
    requests: "Counter[str]" = field(default_factory=Counter)
    """To tell what became of a call, by key."""
    on_the_way: list[OnTheWay] = field(default_factory=list)
    running: dict[str, Transfer] = field(default_factory=dict)
    _barred: dict[str, int] = field(default_factory=dict)
    _results: dict[str, str] = field(default_factory=dict)

    async def call(self, context: ToolContext) -> str:
        """Runs a transfer until the test ends it."""
        if self.holds:
            on_the_way = OnTheWay(context, asyncio.get_running_loop().create_future())
            self.on_the_way.append(on_the_way)
            await on_the_way.arrives
        if context.attempt <= self._barred.get(context.key, 0) and not self.breaks_its_promise:
            raise NotStarted("It was refused; it did not run.")
        self.effects[context.key] += 1
        transfer = Transfer(context, asyncio.get_running_loop().create_future())
        self.running[context.key] = transfer
        return await transfer.ends

    def end(self, key: str, *, broken: bool = False) -> None:
        """Ends a transfer. `broken`: its answer does not come."""
        transfer = self.running.pop(key)
        self._results[key] = '"moved"'
        if transfer.ends.done():
            return  # its caller is gone
        if broken:
            transfer.ends.set_exception(OutcomeUnknown("The connection broke."))
        else:
            transfer.ends.set_result('"moved"')

    def lose(self, key: str) -> None:
        """Forgets a transfer in the middle of it; its answer does not come."""
        self.end(key, broken=True)
        del self._results[key]
        self._barred[key] = -1

    def answer(self, context: ToolContext) -> Reconciled | StillRunning:
        """Returns what became of a call."""
        self.requests[context.key] += 1
        if self.cannot_tell:
            raise CannotReconcile
        if self.is_down:
            raise SourceUnreachable("The ledger does not answer.")
        if context.key in self.running:
            return StillRunning(RETRY_AFTER)
        if context.key in self._results:
            return Reconciled(state=ReconciledState.DONE, result_json=self._results[context.key])
        if self._barred.get(context.key) == -1:
            return Reconciled(state=ReconciledState.UNKNOWN)
        self._barred[context.key] = max(context.attempt, self._barred.get(context.key, 0))
        return Reconciled(state=ReconciledState.NOT_STARTED)


class Ledger:
    """One replica's source of the server's one tool."""

    listing = 1
    name = LEDGER

    def __init__(self, schema: str, observed: Observed, server: LedgerServer) -> None:
        self._spec = ToolSpec(
            name="transfer", description="", schema_json=schema, tool_class=ToolClass.IRREVERSIBLE, source=LEDGER
        )
        self._observed = observed
        self._server = server

    def specs(self) -> list[ToolSpec]:
        """Returns the tool."""
        return [self._spec]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Checks the start, then runs it at the server."""
        self._observed.tool_is_started(self._spec, AGENT, context, arguments)
        return await self._server.call(context)

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled | StillRunning:
        """Returns what the server tells."""
        return self._server.answer(context)
