"""A limiter with a clock of its own, and what it reported."""

from collections import Counter

from turnkeeper.errors import QuotaExceeded, RateLimitExceeded
from turnkeeper.limits.charge import Charge
from turnkeeper.limits.limiter import Beyond, Limiter, Method, Person
from turnkeeper.limits.profile import Cap, Group, Profile, Scope, rate_of
from turnkeeper.limits.table import LimitTable

ADA, BOB, ZOE = Person("blue", "ada"), Person("blue", "bob"), Person("red", "zoe")
SEND = Method("SendMessage", Group.MESSAGES, may_wait=True, adds_turn=True)
READ = Method("GetSession", Group.READS)
WATCH = Method("WatchEvents", Group.READS, is_stream=True)


def a_profile(*, principal: dict[str, int] | None = None, tenant: dict[str, int] | None = None, **caps: int) -> Profile:
    rates = {(Scope.PRINCIPAL, name): rate_of(calls) for name, calls in (principal or {}).items()}
    rates |= {(Scope.TENANT, name): rate_of(calls) for name, calls in (tenant or {}).items()}
    return Profile(rates, {Cap(name): most for name, most in caps.items()})


class Desk:
    """Charges calls."""

    def __init__(self, profile: Profile, *, is_shadow: bool = False) -> None:
        self.now = 1000.0
        self.table: LimitTable | None = LimitTable(is_shadow=is_shadow, others=profile)
        self.reported: Counter[tuple[str, str, str]] = Counter()
        self.queued: Counter[str] = Counter()
        self.limiter = Limiter(lambda: self.table, turns=self, recorder=self, clock=lambda: self.now)

    def limited(self, limit: str, *, scope: str, outcome: str) -> None:
        self.reported[limit, scope, outcome] += 1

    def waiting_of(self, tenant: str) -> int:
        return self.queued[tenant]

    def call(self, person: Person, method: Method = SEND, *, key: int | None = None) -> Charge | float | str:
        """Makes a call as `rpc/limits.py` does. Returns its charge, the time after which to come back, or the cap."""
        try:
            return self.limiter.charge(person, method)
        except QuotaExceeded as quota:
            return quota.metadata["limit"]
        except Beyond as beyond:
            if key is not None and (charge := self.limiter.admit_known(key)) is not None:
                return charge
            return seconds_of(self.limiter.refused(beyond, key))

    def admitted(self, person: Person, method: Method = SEND) -> int:
        """Returns how many calls are admitted now, one after the other."""
        count = 0
        while isinstance(self.call(person, method), Charge):
            count += 1
        return count


def seconds_of(refusal: RateLimitExceeded) -> float:
    assert refusal.retry_after is not None
    return refusal.retry_after.total_seconds()
