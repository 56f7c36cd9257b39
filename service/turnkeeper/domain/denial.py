"""A tool that an operator denies for a while, whatever the rules of agents allow."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDenial:
    """No call of these tools starts in the tenant while it exists."""

    tenant: str
    pattern: str
    """A tool's name, or a pattern with `*` and `?`."""
    principal: str
    """Who denied it."""
    reason: str
    create_time: datetime
    until: datetime | None = None
    """When it ends, by the database's clock; None: when it is allowed again."""
