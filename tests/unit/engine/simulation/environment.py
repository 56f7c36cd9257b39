"""All replicas, their database and their time."""

import asyncio
import itertools
import logging
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from datetime import timedelta
from random import Random
from typing import Any

from tests.builders import NOON, a_session, a_session_key
from tests.memory_store.state import LoggedEvent, MemoryDatabase, StoredSession
from tests.unit.engine.simulation.ledger import LedgerServer
from tests.unit.engine.simulation.observed import Observed
from tests.unit.engine.simulation.outside import AGENT, FIRST_SCHEMA, Defect
from tests.unit.engine.simulation.replica import HOLD, Gate, Hold, Replica
from tests.unit.engine.simulation.virtual_loop import Clock, VirtualLoop
from turnkeeper.domain.event import NewEvent, SessionCreated
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.errors import SessionContended
from turnkeeper.rpc.codec import WireCodec

LOGGER = logging.getLogger("turnkeeper")


class ErrorLog(logging.Handler):
    """Receives the errors that replicas log: one that is no Defect is a violation."""

    def __init__(self, observed: Observed) -> None:
        super().__init__(logging.ERROR)
        self._observed = observed

    def emit(self, record: logging.LogRecord) -> None:
        """Notes the error."""
        error = record.exc_info[1] if record.exc_info else None
        self._observed.check(isinstance(error, Defect), f"{record.getMessage()} {error!r}")


class Environment:
    """The replicas and what they share."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.database = MemoryDatabase(now=self.clock.time)
        self.observed = Observed(self.clock, self.database, is_gone=lambda name: self._gates[name].is_closed)
        self.schema = FIRST_SCHEMA
        """Of the tools of replicas from here on."""
        self.ledger = LedgerServer()
        """The server of the tool `transfer`."""
        self.replicas: list[Replica] = []
        """Those that are not gone."""
        self._loop = VirtualLoop(self.clock)
        self._random = Random(0)
        self._ids = itertools.count(1)
        self._names = itertools.count(1)
        self._jobs: dict[str, list[asyncio.Task[None]]] = {}
        self._gates: dict[str, Gate] = {}
        """Of all replicas, also of those that are gone."""
        self._calls: set[asyncio.Task[None]] = set()
        self._sources = Sources(now=self.clock.time, new_id=self.new_id, jitter=lambda: 0.5)
        self._error_log = ErrorLog(self.observed)
        LOGGER.addHandler(self._error_log)
        LOGGER.propagate = False
        self.full = self._start_replica(concurrency=0)
        """Has no room for a turn. Callers come here, and it sweeps."""

    def new_id(self) -> str:
        """Returns an id that nothing else has."""
        return f"id-{next(self._ids):05d}"

    def new_session(self) -> SessionKey:
        """Stores a new session."""
        key = a_session_key(session_id=f"session-{len(self.database.sessions)}")
        session = a_session(key, title="", labels={}, agent=AGENT.name, agent_version=AGENT.version)
        created = SessionCreated(agent=AGENT.name, agent_version=AGENT.version, owner=session.owner, title="")
        event = NewEvent(payload=created, at=NOON)
        first = LoggedEvent.of(event, codec=WireCodec(), session_id=session.id, sequence=1, changeset_id="", fence=0)
        self.database.sessions[key] = StoredSession(session=session, log=[first], update_time=session.update_time)
        return key

    def stored(self, key: SessionKey) -> StoredSession:
        """Returns the session as it is stored now."""
        return self.database.sessions[key]

    # --- replicas ----------------------------------------------------------------------------------------------

    def replica_with_room(self) -> Replica:
        """Returns a replica that runs nothing: one that has nothing left to do, or a new one."""
        for replica in self.replicas:
            if replica.is_idle and not replica.gate.is_closed:
                return replica
        replica = self._start_replica(concurrency=2)  # the look for claimable turns, which waits, reserves room
        self.replicas.append(replica)
        return replica

    def owner_of(self, key: SessionKey) -> Replica | None:
        """Returns the replica that runs the session's turn, or believes so. Returns None for none."""
        owners = (replica for replica in self.replicas for lease in replica.held_leases if lease.key == key)
        return next(owners, None)

    def claim(self, *, is_frozen: bool, is_slow: bool = False) -> None:
        """A replica with room looks for a claimable turn.

        `is_frozen`: nothing of it is stored after the claim. `is_slow`: the claim's answer does not come in time.
        """
        replica = self.replica_with_room()
        replica.worker.notify()
        self.settle()
        replica.gate.is_slow = is_slow
        replica.gate.let("claim")
        if is_frozen:
            self._loop.call_soon(setattr, replica.gate, "is_closed", True)
        self.settle()
        replica.gate.is_slow = False

    def drain(self, replica: Replica, *, grace: float) -> None:
        """The replica's process is to end."""
        self.start(replica.worker.drain(grace=grace))

    def stop(self, replica: Replica) -> None:
        """The replica's process ends, where it is: nothing of it reaches the store from here on."""
        replica.gate.is_closed = True
        self.replicas.remove(replica)
        for job in self._jobs.pop(replica.name):
            job.cancel()

    def deploy(self, schema: str) -> None:
        """Replicas from here on have tools with this schema; those that run nothing are stopped."""
        self.schema = schema
        for replica in [replica for replica in self.replicas if replica.is_idle]:
            self.stop(replica)

    def sweep(self) -> None:
        """A replica sweeps: it requeues turns whose lease lapsed, and expires approvals."""
        self.start(self.full.sweeper.sweep())
        self.start(self.full.expirer.expire_lapsed())

    def _start_replica(self, *, concurrency: int) -> Replica:
        replica = Replica(
            f"replica-{next(self._names)}",
            self.observed,
            sources=self._sources,
            random=self._random,
            schema=self.schema,
            concurrency=concurrency,
            ledger=self.ledger,
        )
        self._gates[replica.name] = replica.gate
        self._jobs[replica.name] = [
            self._loop.create_task(work, context=Context()) for work in (replica.worker.run(), replica.heartbeat.run())
        ]
        self.settle()
        return replica

    # --- time --------------------------------------------------------------------------------------------------

    def start(self, call: Coroutine[Any, Any, None], *, hold: Hold | None = None) -> None:
        """Starts a caller's call. It goes on until it is done, or waits for something."""
        context = Context()
        context.run(HOLD.set, hold)
        self._calls.add(self._loop.create_task(call, context=context))
        self.settle()

    def settle(self) -> None:
        """Lets everything go on until it waits for the test, or for its time.

        Raises what a caller's call raised, unless it stood in line for too long behind a call that is held.
        """
        self._loop.settle()
        done = {call for call in self._calls if call.done()}
        self._calls -= done
        for call in done:
            if not call.cancelled():
                with suppress(SessionContended):
                    call.result()

    def advance(self, delay: timedelta) -> None:
        """Lets time pass."""
        self.clock.now += delay

    def close(self) -> None:
        """Ends all tasks, then the loop."""
        LOGGER.removeHandler(self._error_log)
        LOGGER.propagate = True
        for _ in range(3):
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.settle()
            self.advance(timedelta(minutes=1))
        self._loop.close()
