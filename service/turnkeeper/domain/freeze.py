"""A freeze of admission: the operator takes no new work, of a tenant or for one of its agents."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """New sessions, new messages and RetryTurn are refused while it exists; all else goes on."""

    tenant: str
    agent: str
    """Empty for all agents of the tenant."""
    principal: str
    """Who froze it."""
    reason: str
    create_time: datetime
