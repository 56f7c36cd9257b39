"""Renews leases from a thread of its own: independent of the event loop and of everything that the loop uses."""

from datetime import timedelta

from pymongo import MongoClient

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.mongo.claims import extended, of_owner
from turnkeeper.store.mongo.client import DatabaseCall, Document


class MongoRenewer:
    """`Renewer`, on a client of its own. Connects at the first call."""

    def __init__(self, uri: str, *, database: str, operation: timedelta) -> None:
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
