"""Renews many leases at a time: one command for up to BATCH of them, whatever the number of turns."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

import pymongo
from pymongo import UpdateOne
from pymongo.collection import Collection as SyncCollection
from pymongo.errors import PyMongoError

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Collection, Document
from turnkeeper.store.mongo.heads import later

BATCH: Final = 128
"""Leases that one command renews, at most."""
LEAST_LIMIT_S: Final = 1.0
"""Seconds that one command has, at least. It would wait for longer for a head that a killed server has locked."""
LIMIT: Final = 3 / 8
"""One command has this fraction of the lease, if that is more: it was sent when the lease was a quarter old.

So a slow database ends no renewal that would still have come in time.
"""

Batch: TypeAlias = Sequence[tuple[SessionKey, int]]
"""Sessions with the fences of their owner."""


def of_owner(key: SessionKey, *, owner: str, fence: int) -> Document:
    """Returns the filter of a renewal: the owner and its fence are still the head's."""
    return {**keys.where(keys.of_session(key)), "owner": owner, "fence": fence}


def extended(lease: timedelta) -> list[Document]:
    """Returns the update of a renewal."""
    return [{"$set": {"lease_until": later(lease)}}]


def limit_s(lease: timedelta) -> float:
    """Returns the seconds that one command has."""
    return max(LEAST_LIMIT_S, LIMIT * lease.total_seconds())


def batches(leases: Mapping[SessionKey, int]) -> list[Batch]:
    """Returns the leases in batches, in random order: one locked head does not stop the same others each time."""
    shuffled = random.sample(list(leases.items()), len(leases))
    return [shuffled[first : first + BATCH] for first in range(0, len(shuffled), BATCH)]


async def renew(heads: Collection, batch: Batch, *, owner: str, lease: timedelta) -> dict[SessionKey, bool]:
    """Extends the leases of a batch. Returns True for each that is held, False for one that is lost."""
    with pymongo.timeout(limit_s(lease)):
        result = await heads.bulk_write(_updates(batch, owner=owner, lease=lease), ordered=False)
    known = _known(batch, result.matched_count)
    if known is not None:
        return known
    halves = await asyncio.gather(*(renew(heads, half, owner=owner, lease=lease) for half in _halves(batch)))
    return {key: is_held for half in halves for key, is_held in half.items()}


def renew_blocking(
    heads: SyncCollection[dict[str, Any]], batch: Batch, *, owner: str, lease: timedelta
) -> dict[SessionKey, bool]:
    """Does what `renew` does, and blocks its thread meanwhile."""
    with pymongo.timeout(limit_s(lease)):
        result = heads.bulk_write(_updates(batch, owner=owner, lease=lease), ordered=False)
    known = _known(batch, result.matched_count)
    if known is not None:
        return known
    first, second = (renew_blocking(heads, half, owner=owner, lease=lease) for half in _halves(batch))
    return first | second


def joined(results: Sequence[dict[SessionKey, bool] | BaseException]) -> dict[SessionKey, bool]:
    """Returns what is known of all batches. Raises the first error if nothing is, and any that is not the driver's."""
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if len(errors) == len(results) or not isinstance(error, PyMongoError):
            raise error
    return {key: is_held for result in results if isinstance(result, dict) for key, is_held in result.items()}


def _updates(batch: Batch, *, owner: str, lease: timedelta) -> list[UpdateOne]:
    return [UpdateOne(of_owner(key, owner=owner, fence=fence), extended(lease)) for key, fence in batch]


def _known(batch: Batch, held: int) -> dict[SessionKey, bool] | None:
    """Returns the result if all leases of the batch are held, or none; None if it must be renewed by halves.

    A lost lease never comes back, so that renewing the halves anew finds out which ones are lost.
    """
    if held not in (0, len(batch)):
        return None
    return dict.fromkeys((key for key, _ in batch), held > 0)


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
