"""Charges each call to the buckets of its principal and its tenant, and refuses what is beyond the limits.

All of it counts on one replica alone: two replicas admit twice as much.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple, Protocol

from turnkeeper.errors import QuotaExceeded, RateLimitExceeded
from turnkeeper.limits.bucket import Bucket, CallRate
from turnkeeper.limits.charge import Charge
from turnkeeper.limits.profile import Cap, Group, Scope
from turnkeeper.limits.promises import Promises, rounded_up
from turnkeeper.limits.table import LimitTable

MOST_BUCKETS: Final = 16_384
"""Buckets that are kept. Beyond it the one that was made first is forgotten, as if it were full."""
SWEEP_FROM: Final = 1024
"""From so many buckets on, the full ones are looked for whenever their number has doubled."""
MOST_REMEMBERED: Final = 16_384
"""Calls of which repeats are recognised without a reading."""
LOOK_RATE: Final = CallRate(per_minute=60 * 256, burst=2048)
"""How much of the bodies of refused calls is read for one principal, in LOOK_BYTES."""
LOOK_BYTES: Final = 1024
ADMITTED: Final = "ADMITTED"
REFUSED: Final = "REFUSED"
CAP_RETRY: Final = timedelta(seconds=1)
"""When a call beyond a cap is to be sent again: when others end is not known."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method, as the limits know it."""

    name: str
    group: Group
    is_stream: bool = False
    may_wait: bool = False
    adds_turn: bool = False


class Person(NamedTuple):
    """Whose call it is."""

    tenant: str
    principal: str


class LimitRecorder(Protocol):
    """What the limiter reports to the metrics."""

    def limited(self, limit: str, *, scope: str, outcome: str) -> None:
        """Counts a call beyond a limit: REFUSED, or ADMITTED in shadow mode."""


class WaitingTurns(Protocol):
    """The turns of a tenant on this replica."""

    def waiting_of(self, tenant: str) -> int:
        """Returns how many were accepted and have not begun."""
        ...


class Beyond(Exception):
    """A call beyond a rate. It goes on if it proves a repeat, or has a promise whose time has come."""

    def __init__(self, scope: Scope, limit: str, lacking: Sequence[Bucket]) -> None:
        """`lacking`: the buckets that the call needs a token of."""
        super().__init__(limit)
        self.scope, self.limit, self.lacking = scope, limit, lacking


class Limiter:
    """The limits of this replica. Without a table there are none."""

    def __init__(
        self,
        table: Callable[[], LimitTable | None],
        *,
        turns: WaitingTurns,
        recorder: LimitRecorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`table` returns the limits as they are now."""
        self._table, self._turns, self._recorder, self._clock = table, turns, recorder, clock
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._sweep_at = SWEEP_FROM
        self._promises = Promises(clock)
        self._remembered: dict[int, None] = {}
        self.streams: Counter[Person] = Counter()
        """Open streams of each principal."""
        self.waits: Counter[Person] = Counter()
        """Calls of each principal that wait."""

    @property
    def is_on(self) -> bool:
        """True if there are limits."""
        return self._table() is not None

    @property
    def bucket_count(self) -> int:
        """The buckets that are kept: those that are not full, and some that have become full meanwhile."""
        return len(self._buckets)

    def charge(self, person: Person, method: Method) -> Charge:
        """Charges a call at its headers. Raises QuotaExceeded, or Beyond for a call beyond a rate."""
        table = self._table()
        if table is None:
            return Charge()
        self._promises.expire()
        over = self._over_cap(person, method, table)
        if over is not None:
            self._recorder.limited(over[1], scope=over[0].value, outcome=ADMITTED if table.is_shadow else REFUSED)
            if not table.is_shadow:
                raise QuotaExceeded(metadata={"limit": over[1], "scope": over[0].value}, retry_after=CAP_RETRY)
        payments, lacking = self._payments(person, method, table)
        if lacking is not None:
            if not table.is_shadow:
                raise Beyond(*lacking, payments)
            self._recorder.limited(lacking[1], scope=lacking[0].value, outcome=ADMITTED)
            payments = [bucket for bucket in payments if bucket.tokens >= 1]
        for bucket in payments:
            bucket.take()
        return Charge(payments)

    def may_look(self, person: Person) -> bool:
        """Returns True if the body of a call beyond its rate may be read."""
        now = self._clock()
        return self._bucket(person, Scope.PRINCIPAL, "", LOOK_RATE, now).fill(now) >= 1

    def looked(self, person: Person, size: int) -> None:
        """Counts the bytes of a body that was read, whose call is refused all the same."""
        self._bucket(person, Scope.PRINCIPAL, "", LOOK_RATE, self._clock()).take(1 + size // LOOK_BYTES)

    def admit_known(self, key: int) -> Charge | None:
        """Returns what a call beyond its rate has paid if it may go on: its time has come, or it is a repeat."""
        if (payments := self._promises.keep(key)) is not None:
            return Charge(payments)
        return Charge() if key in self._remembered else None

    def refused(self, beyond: Beyond, key: int | None, *, is_unique: bool = True) -> RateLimitExceeded:
        """Returns the refusal of a call beyond its rate. With a key, its time is promised if it can be.

        `is_unique`: calls of the same key are one call, which is sent again.
        """
        self._recorder.limited(beyond.limit, scope=beyond.scope.value, outcome=REFUSED)
        seconds = self._promises.seconds(key) if key is not None and is_unique else None
        if seconds is None and key is not None:
            seconds = self._promises.make(key, beyond.lacking)
        if seconds is None:
            now = self._clock()
            seconds = rounded_up(max(bucket.wait(now) for bucket in beyond.lacking))
        return RateLimitExceeded(
            metadata={"limit": beyond.limit, "scope": beyond.scope.value}, retry_after=timedelta(seconds=seconds)
        )

    def remember(self, key: int) -> None:
        """Remembers a call that was admitted, so that its repeats are recognised."""
        if self.is_on:
            self._remembered.pop(key, None)
            self._remembered[key] = None
            if len(self._remembered) > MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]

    def most_running(self, tenant: str) -> int:
        """Returns how many turns of a tenant may run here at the same time; 0 for any number."""
        table = self._table()
        if table is None or table.is_shadow:
            return 0
        return table.of(tenant).caps.get(Cap.TURNS_UNDER_WAY, 0)

    def _payments(
        self, person: Person, method: Method, table: LimitTable
    ) -> tuple[list[Bucket], tuple[Scope, str] | None]:
        """Returns the buckets of a call, and the first limit whose bucket has no token for it."""
        profile, now = table.of(person.tenant), self._clock()
        payments, lacking = list[Bucket](), None
        for scope in Scope:
            if (limit := profile.rate(scope, method.name, method.group)) is None:
                continue
            bucket = self._bucket(person, scope, *limit, now)
            payments.append(bucket)
            if lacking is None and bucket.fill(now) < 1:
                lacking = (scope, limit[0])
        return payments, lacking

    def _over_cap(self, person: Person, method: Method, table: LimitTable) -> tuple[Scope, Cap] | None:
        """Returns the cap that the call is beyond."""
        caps = table.of(person.tenant).caps
        if method.is_stream and Cap.STREAMS in caps and self.streams[person] >= caps[Cap.STREAMS]:
            return Scope.PRINCIPAL, Cap.STREAMS
        if method.may_wait and Cap.WAITS in caps and self.waits[person] >= caps[Cap.WAITS]:
            return Scope.PRINCIPAL, Cap.WAITS
        queued = caps.get(Cap.TURNS_QUEUED, caps.get(Cap.TURNS_UNDER_WAY))
        if method.adds_turn and queued is not None and self._turns.waiting_of(person.tenant) >= queued:
            return Scope.TENANT, Cap.TURNS_QUEUED
        return None

    def _bucket(self, person: Person, scope: Scope, limit: str, rate: CallRate, now: float) -> Bucket:
        key = (person.tenant, person.principal if scope is Scope.PRINCIPAL else "", limit)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._sweep_at:
                self._sweep(now)
            bucket = self._buckets[key] = Bucket(rate, now)
        elif bucket.rate is not rate:
            bucket.fill(now)
            bucket.rate = rate
        return bucket

    def _sweep(self, now: float) -> None:
        """Forgets the buckets that are full, which new ones would be as well. So does a principal that stays away."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if not bucket.is_full(now)}
        while len(self._buckets) >= MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        self._sweep_at = min(MOST_BUCKETS, max(SWEEP_FROM, 2 * len(self._buckets)))
