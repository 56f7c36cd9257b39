"""How a lease is renewed without the event loop."""

from datetime import timedelta
from typing import Protocol


class Renewer(Protocol):
    """Renews leases from a thread of its own, over a connection of its own."""

    def renew(self, tenant: str, session_id: str, *, owner: str, fence: int, lease: timedelta) -> bool:
        """As the store's `renew`; it blocks the thread."""
        ...

    def close(self) -> None: ...
