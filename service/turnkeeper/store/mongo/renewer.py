"""Renews leases for `LeaseKeepAlive`, from its thread: independent of the event loop and of all that the loop uses.

The worker's renewals, those of a loop that runs, are in `claims.py`.
"""

from collections.abc import Mapping
from datetime import timedelta

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.mongo import renewals
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

    def renew_all(self, leases: Mapping[SessionKey, int], *, owner: str, lease: timedelta) -> Mapping[SessionKey, bool]:
        with DatabaseCall():
            work = (self._renew(batch, owner=owner, lease=lease) for batch in renewals.batches(leases))
            return renewals.joined(list(work))

    def _renew(self, batch: renewals.Batch, *, owner: str, lease: timedelta) -> dict[SessionKey, bool] | PyMongoError:
        try:
            return renewals.renew_blocking(self._heads, batch, owner=owner, lease=lease)
        except PyMongoError as error:
            return error

    def close(self) -> None:
        self._client.close()
