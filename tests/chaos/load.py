"""`python -m tests.chaos.load --addresses A,B,C --identity DIR --seed N --seconds S --out DIR`: the clients of a run.

Users, writers to one shared session, watchers, approvers and spies of two tenants, in one process. Every response is
recorded in DIR before a client uses it. New sessions and messages are begun for S seconds; then the clients finish
them, for `grace` seconds at most, and write into their sessions once more. Exit status 0, also when nothing could be
reached: the checker judges.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos import tenants
from tests.chaos.approvers import Approver
from tests.chaos.calls import Caller, Replicas
from tests.chaos.next_messages import TIME, write_once_more
from tests.chaos.record import CALLS, LOAD, STREAMS, Recorder
from tests.chaos.spies import Loot, Spy
from tests.chaos.streams import Watcher
from tests.chaos.users import Place, Term, User, Writer

GRACE = 60.0
SESSIONS = 34
"""Of both tenants together."""
_WRITERS = 2
_WATCHERS = 2
"""Of the shared session of each tenant."""
_HOT_MESSAGES = 40


async def run(
    *,
    addresses: list[str],
    identity: Path,
    seed: int,
    seconds: float,
    out: Path,
    sessions: int = SESSIONS,
    grace: float = GRACE,
) -> None:
    """Runs the load, with its records in the folder `out`. Returns when every client is done.

    `identity`: the folder of `tenants.write`.
    """
    began = time.time()
    with Recorder(out / CALLS) as calls, Recorder(out / STREAMS) as streams:
        async with Replicas(addresses) as replicas:
            now = time.monotonic()
            term = Term(over=now + seconds, until=now + seconds + grace)
            done = asyncio.Event()
            loot = {tenant: Loot() for tenant in tenants.TENANTS}
            async with asyncio.TaskGroup() as group:
                loads = [
                    _Load(tenant, replicas, calls, streams, identity=identity, group=group, seed=seed, term=term)
                    for tenant in tenants.TENANTS
                ]
                for load in loads:
                    group.create_task(load.spy(loot).work(done))
                try:
                    await asyncio.gather(*(load.run(-(-sessions // len(loads))) for load in loads))
                finally:
                    done.set()
    record = {"seed": seed, "seconds": seconds, "began": began, "over": began + seconds, "ended": time.time()}
    (out / LOAD).write_text(json.dumps(record) + "\n")


class _Load:
    """The clients of one tenant. Those of the other tenant have the same names, and the same ids."""

    def __init__(
        self,
        tenant: str,
        replicas: Replicas,
        calls: Recorder,
        streams: Recorder,
        *,
        identity: Path,
        group: asyncio.TaskGroup,
        seed: int,
        term: Term,
    ) -> None:
        self._tenant = tenant
        self._replicas = {name: replicas.of(tenants.identity(identity, tenant, name)) for name in tenants.PRINCIPALS}
        self._calls = calls.of(tenant)
        self._streams = streams.of(tenant)
        self._group = group
        self._seed = seed
        self._term = term

    async def run(self, sessions: int) -> None:
        """Runs users and approvers. The approvers end after the users; then each session has its next message."""
        users_done = asyncio.Event()
        approvers = [self._approver(number) for number in range(2)]
        await approvers[0].lend()
        async with asyncio.TaskGroup() as group:
            for approver in approvers:
                group.create_task(approver.work(users_done))
            try:
                await self._users(sessions)
            finally:
                users_done.set()
        await approvers[0].finish()
        last = self._caller("next", until=time.monotonic() + TIME)
        await write_once_more(last, self._calls)

    def _approver(self, number: int) -> Approver:
        names = (*tenants.OTHERS, tenants.DEPUTY, tenants.USER)
        others = {name: self._caller(f"{name} of approver{number}", name) for name in names}
        return Approver(self._caller(f"approver{number}", tenants.APPROVER), others, term=self._term)

    async def _users(self, sessions: int) -> None:
        async with asyncio.TaskGroup() as group:
            parts: dict[str, Any] = {"calls": self._calls, "streams": self._streams, "term": self._term}
            for number in range(sessions):
                group.create_task(User(self._caller(f"user{number}"), **parts).live())
            async with asyncio.TaskGroup() as writing:
                shared = _Shared(self, group)
                place = Place(most=_HOT_MESSAGES, rng=self.rng("place"), opened=shared.opened)
                for number in range(_WRITERS):
                    writing.create_task(Writer(self._caller(f"writer{number}"), place, **parts).live())
            shared.done.set()

    def spy(self, loot: Mapping[str, Loot]) -> Spy:
        caller = self._caller(f"spy of {self._tenant}", tenants.SPY)
        return Spy(caller, mine=loot[self._tenant], theirs=loot[tenants.other(self._tenant)])

    def watcher(self, session_id: str, *, number: int) -> Watcher:
        rng = self.rng(f"watcher{number} of {session_id}")
        readers = self._replicas[tenants.USER]
        return Watcher(self._streams, readers, session_id=session_id, rng=rng, previews=number > 0)

    def rng(self, name: str) -> random.Random:
        """Returns a generator of each client's own, so that no client changes another's draws."""
        return random.Random(f"{self._seed} {name}")

    def _caller(self, name: str, principal: str = tenants.USER, *, until: float | None = None) -> Caller:
        rng, replicas = self.rng(name), self._replicas[principal]
        until = self._term.until if until is None else until
        return Caller(name, replicas, self._calls, rng=rng, group=self._group, until=until)


class _Shared:
    """Watchers of the session that several write to; those of the last one end when there is a new one."""

    def __init__(self, load: _Load, group: asyncio.TaskGroup) -> None:
        self.done = asyncio.Event()
        self._load = load
        self._group = group

    def opened(self, session_id: str) -> None:
        self.done.set()
        self.done = asyncio.Event()
        for number in range(_WATCHERS):
            self._group.create_task(self._load.watcher(session_id, number=number).run(self.done))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load", description="The clients of a chaos run.")
    parser.add_argument("--addresses", required=True, help="the servers, or the proxies before them: HOST:PORT,…")
    parser.add_argument("--identity", type=Path, required=True, metavar="DIR", help="the folder of the callers' tokens")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="seconds in which new messages are begun")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the records")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="users at once, of both tenants [%(default)s]")
    arguments = vars(parser.parse_args())
    arguments["out"].mkdir(parents=True, exist_ok=True)
    asyncio.run(run(addresses=arguments.pop("addresses").split(","), **arguments))


if __name__ == "__main__":
    main()
