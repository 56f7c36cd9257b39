"""What a call has paid, and gets back when it proves a repeat."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Final

from turnkeeper.limits.bucket import Bucket


class Charge:
    """The tokens that one call took."""

    __slots__ = ("_payments",)

    def __init__(self, payments: Sequence[Bucket] = ()) -> None:
        self._payments = payments

    def give_back(self) -> None:
        """Returns the tokens to their buckets; the second time does nothing."""
        payments, self._payments = self._payments, ()
        for bucket in payments:
            bucket.give_back()


CURRENT: Final[ContextVar[Charge | None]] = ContextVar("what the call that this task works for has paid", default=None)


def repeated() -> None:
    """Gives back what the current call has paid. Called where a call proves a repeat of one that had its effect."""
    if (charge := CURRENT.get()) is not None:
        charge.give_back()
