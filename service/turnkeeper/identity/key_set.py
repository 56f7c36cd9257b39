"""The issuer's keys, by which tokens are checked: fetched beside the calls, kept through an outage of their server."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Final

import orjson
from jwt import PyJWK, PyJWTError

from turnkeeper.errors import ServiceUnavailable
from turnkeeper.identity.credential import Refusal, refused
from turnkeeper.identity.key_source import KeySource, KeysUnreadable

REFETCH: Final = 10.0
"""Seconds between two fetches, at least, that an unknown key id causes: anybody can make such a token."""
WAIT: Final = 2.0
"""Seconds that a call waits for a fetch, at most."""
FIRST_RETRY: Final = 1.0
"""Seconds after which a failed fetch is repeated at first; each further pause is twice as long, up to REFETCH."""
MOST_WAITING: Final = 1_000
"""Calls that wait for a fetch: anybody can make one that does. Further ones are to come again."""
MOST_KEYS: Final = 100
_PRIVATE: Final = frozenset({"d", "k"})
"""The fields of private and of symmetric keys: a key that has one is ignored."""
_FITTING: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("RSA", ""): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}
"""The algorithms of each type of key and its curve: all of `setting_types.ALGORITHMS`."""

Keys = Mapping[tuple[str, str], PyJWK]
"""Keys by key id and algorithm."""

logger = logging.getLogger(__name__)


class KeySet:
    """The keys of one issuer. Its `run` must run beside it."""

    def __init__(
        self,
        source: KeySource,
        *,
        algorithms: Sequence[str],
        age: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`age`: the keys are fetched anew that often. `clock` returns seconds."""
        self._source = source
        self._algorithms = frozenset(algorithms)
        self._age = age.total_seconds()
        self._clock = clock
        self._content = b""
        self._keys: Keys = {}
        self._failed = True
        self._last_begin = -REFETCH
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        self.resting: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered by a call for as long as it waits for a fetch."""
        self.report: Callable[[str, str], None] = lambda _name, _outcome: None
        """Called with "keys", and LOADED for new keys or REFUSED after each fetch that failed."""
        self.version = 0
        """Grows when the keys change: what was checked by an earlier version is checked again."""

    async def key(self, key_id: str, algorithm: str) -> PyJWK:
        """Returns the key of a token. An empty id names the only key that fits the algorithm.

        An unknown id causes a fetch, at most once in REFETCH seconds, for which the call waits. Raises Unauthenticated
        with UNKNOWN_KEY or WRONG_ALGORITHM. Raises ServiceUnavailable if the key's server was not reached: the token
        may be valid.
        """
        if (key := self._find(key_id, algorithm)) is None:
            await self._refetched()
            key = self._find(key_id, algorithm)
        if key is not None:
            return key
        if self._failed or self._fetching is not None:
            raise ServiceUnavailable(
                "The keys that check tokens cannot be fetched now; send the same call again.",
                metadata={"reason": "KEYS_UNAVAILABLE"},
                retry_after=timedelta(seconds=FIRST_RETRY),
            )
        raise refused(Refusal.UNKNOWN_KEY)

    async def run(self) -> None:
        """Fetches the keys now and every `age` seconds, until it is cancelled. Repeats a failed fetch earlier."""
        pause = FIRST_RETRY
        try:
            while True:
                await asyncio.wait([self._begun()])
                if self._failed:
                    await asyncio.sleep(min(pause, self._age))
                    pause = min(2 * pause, REFETCH)
                else:
                    pause = FIRST_RETRY
                    await asyncio.sleep(self._age)
        finally:
            if (fetching := self._fetching) is not None:
                fetching.cancel()
                await asyncio.wait([fetching])
            await self._source.close()

    def _find(self, key_id: str, algorithm: str) -> PyJWK | None:
        """Returns the key, or None if the id is unknown. Raises Unauthenticated if its key has other algorithms."""
        if key := self._keys.get((key_id, algorithm)):
            return key
        if not key_id:
            fitting = [key for (_, fit), key in self._keys.items() if fit == algorithm]
            return fitting[0] if len(fitting) == 1 else None
        if any(known == key_id for known, _ in self._keys):
            raise refused(Refusal.WRONG_ALGORITHM)
        return None

    async def _refetched(self) -> None:
        """Waits for the fetch under way, or for a new one if the last one began long enough ago.

        Waits WAIT at most, and not at all if MOST_WAITING calls do.
        """
        if (self._fetching is None and self._clock() - self._last_begin < REFETCH) or self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            with self.resting():
                await asyncio.wait([self._begun()], timeout=WAIT)
        finally:
            self._waiting -= 1

    def _begun(self) -> asyncio.Task[None]:
        """Returns the fetch under way, or a new one."""
        if self._fetching is None:
            self._last_begin = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            content = await self._source.read()
            if content != self._content:
                self._keys = usable_keys(content, self._algorithms)
                self._content = content
                self.version += 1
                self.report("keys", "LOADED")
        except KeysUnreadable as error:
            kept = "the keys fetched before stay in use" if self._keys else "tokens are refused until they are fetched"
            logger.warning("keys not fetched from %s: %s; %s", self._source.name, error, kept)
            self._failed = True
            self.report("keys", "REFUSED")
        else:
            if self._failed:
                logger.info("keys fetched from %s: %d", self._source.name, len({key_id for key_id, _ in self._keys}))
            self._failed = False
        finally:
            self._fetching = None


def usable_keys(content: bytes, algorithms: frozenset[str]) -> Keys:
    """Returns the keys of a JWK set that can check tokens with these algorithms. Raises KeysUnreadable if none can."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise KeysUnreadable("it is not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise KeysUnreadable(f'it has no list "keys" of at most {MOST_KEYS} keys')
    keys: dict[tuple[str, str], PyJWK] = {}
    for jwk in listed:
        for algorithm in _algorithms_of(jwk) & algorithms:
            if (key := _parsed(jwk, algorithm)) is not None:
                keys.setdefault((jwk.get("kid", ""), algorithm), key)
    if not keys:
        raise KeysUnreadable(f"none of its {len(listed)} keys can check a token by {', '.join(sorted(algorithms))}")
    return keys


def _algorithms_of(jwk: object) -> frozenset[str]:
    """Returns the algorithms that a key can be used with: none for private, symmetric and encryption keys."""
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid", ""), str) or not _PRIVATE.isdisjoint(jwk):
        return frozenset()
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return frozenset()
    kind, curve = jwk.get("kty"), jwk.get("crv", "")
    fitting = _FITTING.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str) else None
    named = jwk.get("alg")
    return frozenset() if fitting is None else fitting if named is None else fitting & {str(named)}


def _parsed(jwk: dict[str, Any], algorithm: str) -> PyJWK | None:
    """Returns the key, or None if it cannot be read or is too short."""
    try:
        key = PyJWK(jwk, algorithm)
        return None if key.Algorithm.check_key_length(key.key) else key
    except (PyJWTError, ValueError, TypeError, LookupError, OverflowError):
        return None
