"""A delegation: one person's authority to decide approvals, in the hands of another for a while."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """The delegate may vote on approvals that the person may decide. It goes no further: one hop."""

    tenant: str
    person: str
    """Who delegates."""
    delegate: str
    """Who votes; needs the role approver."""
    until: datetime
    """Compared with the store's clock."""
    create_time: datetime
    through: str = ""
    """The delegate that made the call on behalf of the person; empty without one."""
