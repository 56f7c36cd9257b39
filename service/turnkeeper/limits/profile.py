"""Profiles: the limits of a tenant and of each of its principals. Two are built in."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from turnkeeper.limits.bucket import CallRate

LEAST_BURST: Final = 10
SHARE_OF_MINUTE: Final = 10


class Group(StrEnum):
    """Methods that share a limit, unless a method has one by its own name."""

    CREATES = "creates"
    """Those that create a session."""
    MESSAGES = "messages"
    """Those that ask for a turn."""
    READS = "reads"
    """Those that get, list, wait or watch."""
    CHANGES = "changes"
    """All others: decisions, results of tools, cancellations, changes of a session."""


class Scope(StrEnum):
    """Whose calls are counted."""

    PRINCIPAL = "principal"
    TENANT = "tenant"


class Cap(StrEnum):
    """What there may be a number of at the same time. The name is also the key of the limits file."""

    STREAMS = "streams"
    """Open streams of a principal."""
    WAITS = "waits"
    """Calls of a principal that wait for a turn, an approval or an event, streams left out."""
    TURNS_UNDER_WAY = "turns_under_way"
    """Turns of a tenant that run."""
    TURNS_QUEUED = "turns_queued"
    """Turns of a tenant that were accepted and have not begun."""


def rate_of(per_minute: int) -> CallRate:
    """Returns the rate with the default burst: a tenth of a minute's calls, at least LEAST_BURST."""
    return CallRate(per_minute, min(per_minute, max(LEAST_BURST, per_minute // SHARE_OF_MINUTE)))


@dataclass(frozen=True, slots=True)
class Profile:
    """The limits of a tenant. What is not named is not limited."""

    rates: Mapping[tuple[Scope, str], CallRate] = field(default_factory=dict)
    """By the name of a method, or of a group."""
    caps: Mapping[Cap, int] = field(default_factory=dict)

    def rate(self, scope: Scope, method: str, group: Group) -> tuple[str, CallRate] | None:
        """Returns the limit of a method, by its own name or that of its group, and that name; None without one."""
        for name in (method, group.value):
            if (rate := self.rates.get((scope, name))) is not None:
                return name, rate
        return None

    def with_rates(self, rates: Mapping[tuple[Scope, str], CallRate | None]) -> "Profile":
        """Returns the profile with these limits; None removes one."""
        changed = {**self.rates, **rates}
        return replace(self, rates={key: rate for key, rate in changed.items() if rate is not None})

    def with_caps(self, caps: Mapping[Cap, int | None]) -> "Profile":
        """Returns the profile with these caps; None removes one."""
        changed = {**self.caps, **caps}
        return replace(self, caps={cap: most for cap, most in changed.items() if most is not None})


def _of_principal(**per_minute: int) -> Mapping[tuple[Scope, str], CallRate]:
    return {(Scope.PRINCIPAL, name): rate_of(calls) for name, calls in per_minute.items()}


DEFAULT: Final = Profile(
    rates=_of_principal(creates=600, SendMessage=1200, StreamMessage=1200, messages=1200, reads=3000),
    caps={Cap.STREAMS: 2000},
)
SMALL_TENANT: Final = DEFAULT.with_rates(
    _of_principal(creates=10, SendMessage=60, StreamMessage=30, GetSession=120, ListSessions=30)
)
BUILT_IN: Final[Mapping[str, Profile]] = {"default": DEFAULT, "small-tenant": SMALL_TENANT}
