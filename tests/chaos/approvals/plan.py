"""Plans the races by seed: which tool asks, and who tries to decide it when and how."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.chaos import tenants


class Kind(StrEnum):
    """What happens to an approval."""

    QUORUM = "quorum"
    """Two of three people decide."""
    SINGLE = "single"
    """One of three people decides."""
    EDITED = "edited"
    """One votes, another edits, and then two of three decide on what was edited."""
    DOUBLED = "doubled"
    """One votes, and its deputy; no other person does who may. The two count as one, and two are needed."""


ROUND: Final = (*[Kind.QUORUM] * 10, *[Kind.SINGLE] * 6, *[Kind.EDITED] * 2, *[Kind.DOUBLED] * 2)
"""Of each twenty races, in an order by the seed."""
SPREADS: Final = (3.5, 0.8)
"""Seconds before the expiry from which on all try to decide."""
_REJECTED: Final = 0.12
"""The share of races in which a person rejects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One race. `rng` is its own, so that no race changes another's draws."""

    number: int
    tenant: str
    kind: Kind
    rejects: bool
    spread: float
    rng: random.Random

    @property
    def tool(self) -> str:
        return "post" if self.kind is Kind.SINGLE else "pay"

    @property
    def session(self) -> str:
        return f"race-{self.number}"

    @property
    def label(self) -> str:
        return tenants.label(self.tenant, str(self.number))


def races(count: int, *, seed: int) -> Sequence[Race]:
    """Returns so many races, the same for the same seed. Tenants take turns."""
    rng = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += rng.sample(ROUND, len(ROUND))
    return [
        Race(
            number=number,
            tenant=tenants.TENANTS[number % len(tenants.TENANTS)],
            kind=kinds[number],
            rejects=rng.random() < _REJECTED,
            spread=rng.choice(SPREADS),
            rng=random.Random(f"{seed} {number}"),
        )
        for number in range(count)
    ]
