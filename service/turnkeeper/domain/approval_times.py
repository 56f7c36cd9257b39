"""How long an approval can be decided: the warning before its end, and more time."""

from datetime import datetime, timedelta
from typing import Final

SHORTEST_WARNED: Final = timedelta(minutes=2)
"""An approval with less time in all has no warning."""
LEAST_LEAD: Final = timedelta(seconds=60)
"""The warning comes so long before the end, at least."""
LEAD_SHARE: Final = 10
"""The warning comes when this part of the first time to decide is left."""
MOST_EXTENDED: Final = 2
"""So many times its first time an approval may have in all."""


def warning_before(expire_time: datetime, *, ttl: timedelta) -> datetime | None:
    """Returns when `approval_expiring` is due; None if an approval with this time to decide has none."""
    return None if ttl < SHORTEST_WARNED else expire_time - max(ttl / LEAD_SHARE, LEAST_LEAD)
