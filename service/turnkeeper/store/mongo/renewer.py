"""Renews leases for `LeaseKeepAlive`, from its thread: independent of the event loop and of all that the loop uses.

The worker's renewals, those of a loop that runs, are in `claims.py`.
"""

from datetime import timedelta

from pymongo import MongoClient

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.mongo.claims import extended, of_owner
from turnkeeper.store.mongo.client import DatabaseCall, Document


class MongoRenewer:
    """Implements `Renewer` on a client of its own, which connects at the first call."""

    def __init__(self, uri: str, *, database: str, operation: timedelta) -> None:
        """`operation` limits each renewal, including the driver's own retries."""
        self._client: MongoClient[Document] = MongoClient(
            uri,
            w="majority",
            journal=True,
            retryWrites=True,
            heartbeatFrequencyMS=1_000,
            connectTimeoutMS=2_000,
            serverSelectionTimeoutMS=2_000,
            timeoutMS=round(operation / timedelta(milliseconds=1)),
            maxPoolSize=1,
            appname="turnkeeper",
            connect=False,
        )
        self._heads = self._client[database]["heads"]

    def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        with DatabaseCall():
            result = self._heads.update_one(of_owner(key, owner=owner, fence=fence), extended(lease))
        return result.matched_count == 1

    def close(self) -> None:
        self._client.close()
