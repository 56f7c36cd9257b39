"""The issuer's keys: when they are fetched, what an outage of their server does, which keys count."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.calls import Call, Issuer, bearer
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.errors import ServiceUnavailable, Unauthenticated
from turnkeeper.identity import key_set
from turnkeeper.identity.key_set import REFETCH, KeySet, usable_keys
from turnkeeper.identity.key_source import KeysUnreadable
from turnkeeper.identity.tokens import Tokens

AGE = timedelta(hours=1)
ES256 = frozenset({"ES256"})


class Server:
    """A key server that a test changes, holds up, and takes away."""

    name = "keys of the test"

    def __init__(self, *issuers: Issuer) -> None:
        self.issuers = issuers
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_up = True
        self.reads = 0
        self.closed = False
        self._changed = asyncio.Condition()

    async def read(self) -> bytes:
        self.reads += 1
        async with self._changed:
            self._changed.notify_all()
        await self.answers.wait()
        if not self.is_up:
            raise KeysUnreadable("it is away")
        return json.dumps({"keys": [issuer.jwk() for issuer in self.issuers]}).encode()

    async def close(self) -> None:
        self.closed = True

    async def until_read(self, times: int) -> None:
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: self.reads >= times)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def running(keys: KeySet) -> AsyncIterator[None]:
    task = asyncio.create_task(keys.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def keys_of(server: Server, clock: Clock, *, age: timedelta = AGE, outcomes: list[str] | None = None) -> KeySet:
    keys = KeySet(server, algorithms=["ES256"], age=age, clock=clock)
    if outcomes is not None:
        keys.report = lambda _, outcome: outcomes.append(outcome)
    return keys


async def refusal_of(keys: KeySet, key_id: str) -> str:
    with pytest.raises((Unauthenticated, ServiceUnavailable)) as refused:
        await keys.key(key_id, "ES256")
    return refused.value.metadata["reason"]


async def test_an_unknown_key_is_fetched_once_in_ten_seconds() -> None:
    old, new = Issuer("old"), Issuer("new")
    server, clock = Server(old), Clock()
    keys = keys_of(server, clock)
    await keys.key("old", "ES256")
    server.issuers = (old, new)
    assert [await refusal_of(keys, f"made up {number}") for number in range(100)] == ["UNKNOWN_KEY"] * 100
    assert await refusal_of(keys, "new") == "UNKNOWN_KEY"
    assert server.reads == 1
    clock.now += REFETCH
    await keys.key("new", "ES256")
    assert server.reads == 2


async def test_callers_of_an_unknown_key_wait_for_one_fetch() -> None:
    issuer = Issuer("new")
    server = Server(issuer)
    server.answers.clear()
    keys = keys_of(server, Clock())
    calls = [asyncio.create_task(keys.key("new", "ES256")) for _ in range(50)]
    await server.until_read(1)
    server.answers.set()
    assert len({id(key) for key in await asyncio.gather(*calls)}) == 1
    assert server.reads == 1


async def test_a_call_waits_for_a_slow_server_no_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_set, "WAIT", 0.05)
    server = Server(Issuer("slow"))
    server.answers.clear()
    keys = keys_of(server, Clock())
    assert await refusal_of(keys, "slow") == "KEYS_UNAVAILABLE"
    server.answers.set()
    await keys.key("slow", "ES256")
    assert server.reads == 1, "the fetch went on after the call that caused it"


async def test_a_server_that_is_down_at_the_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_set, "FIRST_RETRY", 0.01)
    server, outcomes = Server(Issuer("dev")), list[str]()
    server.is_up = False
    keys = keys_of(server, Clock(), outcomes=outcomes)
    async with running(keys):
        await server.until_read(3)
        assert await refusal_of(keys, "dev") == "KEYS_UNAVAILABLE"
        server.is_up = True
        await server.until_read(server.reads + 1)
        await keys.key("dev", "ES256")
    assert outcomes[:2] == ["REFUSED", "REFUSED"]
    assert outcomes[-1] == "LOADED"
    assert server.closed


async def test_known_keys_outlast_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten cache times long. What the outage hides, a key of another id, is not called wrong."""
    monkeypatch.setattr(key_set, "FIRST_RETRY", 0.01)
    server = Server(Issuer("dev"))
    keys = keys_of(server, Clock(), age=timedelta(milliseconds=10))
    async with running(keys):
        await server.until_read(2)
        server.is_up = False
        begin = server.reads
        for reads in range(1, 11):
            await server.until_read(begin + reads)
            await keys.key("dev", "ES256")
        assert await refusal_of(keys, "another") == "KEYS_UNAVAILABLE"


async def test_a_withdrawn_key_ends_its_tokens() -> None:
    old, new = Issuer("old"), Issuer("new")
    server, clock = Server(old), Clock()
    keys = keys_of(server, clock)
    tokens = Tokens(keys, issuer=ISSUER, audience=AUDIENCE, algorithms=["ES256"])
    call = Call(bearer(old.token()))
    await tokens.credential(call)
    server.issuers = (new,)
    clock.now += REFETCH
    await keys.key("new", "ES256")
    with pytest.raises(Unauthenticated, match="credential") as refused:
        await tokens.credential(call)
    assert refused.value.metadata == {"reason": "UNKNOWN_KEY"}


async def test_an_answer_without_keys_is_an_outage() -> None:
    server, clock, outcomes = Server(Issuer("dev")), Clock(), list[str]()
    keys = keys_of(server, clock, outcomes=outcomes)
    await keys.key("dev", "ES256")
    server.issuers = ()
    clock.now += REFETCH
    assert await refusal_of(keys, "another") == "KEYS_UNAVAILABLE"
    await keys.key("dev", "ES256")
    assert outcomes == ["LOADED", "REFUSED"]


def rsa_jwk(bits: int = 2048, *, private: bool = False, **changed: object) -> dict[str, Any]:
    key = rsa.generate_private_key(65537, bits)
    jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key if private else key.public_key(), as_dict=True)
    return {**jwk, "kid": "rsa", **changed}


@pytest.mark.parametrize(
    "jwk",
    [
        "text",
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "ES256"},
        {"kty": "EC", "crv": "P-256", "kid": "no point"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "not on the curve"},
        {"kty": ["EC"], "crv": "P-256"},
        {"kty": "RSA", "n": 7, "e": 7},
        {**Issuer().jwk(), "use": "enc"},
        {**Issuer().jwk(), "key_ops": ["sign"]},
        {**Issuer().jwk(), "key_ops": 7},
        {**Issuer().jwk(), "alg": "ES384"},
        {**Issuer().jwk(), "alg": "HS256"},
        {**Issuer().jwk(), "kid": 7},
        {**Issuer().jwk(), "d": "AA"},
        rsa_jwk(1024),
        rsa_jwk(private=True),
        rsa_jwk(private=True, key_ops=["sign", "verify"]),
        rsa_jwk(alg="RS512"),
    ],
)
def test_a_key_that_cannot_check_a_token_is_ignored(jwk: object) -> None:
    algorithms = frozenset({"ES256", "RS256"})
    good = Issuer("good")
    assert set(usable_keys(json.dumps({"keys": [jwk, good.jwk()]}).encode(), algorithms)) == {("good", "ES256")}
    with pytest.raises(KeysUnreadable, match="none of its 1 keys can check a token by ES256, RS256"):
        usable_keys(json.dumps({"keys": [jwk]}).encode(), algorithms)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"<html>", b'{"keys": {}}', b"\xff", b'{"keys": ["' + b'", "' * 200]
)
def test_what_is_no_key_set(content: bytes) -> None:
    with pytest.raises(KeysUnreadable):
        usable_keys(content, ES256)


def test_a_key_that_names_no_algorithm_checks_all_that_fit_it() -> None:
    algorithms = frozenset({"ES256", "RS256", "PS256"})
    assert set(usable_keys(json.dumps({"keys": [rsa_jwk()]}).encode(), algorithms)) == {
        ("rsa", "RS256"),
        ("rsa", "PS256"),
    }


async def test_calls_that_wait_for_keys_rest_and_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make calls that wait: they take nothing from others."""
    monkeypatch.setattr(key_set, "MOST_WAITING", 3)
    server = Server(Issuer("known"))
    keys = keys_of(server, Clock())
    server.answers.clear()
    rested: list[str] = []

    @contextmanager
    def resting() -> Iterator[None]:
        rested.append("rests")
        yield
        rested.append("works")

    keys.resting = resting
    waiting = [asyncio.create_task(refusal_of(keys, f"made up {number}")) for number in range(3)]
    await server.until_read(1)
    assert rested == ["rests"] * 3
    assert await refusal_of(keys, "one more") == "KEYS_UNAVAILABLE"
    server.answers.set()
    assert await asyncio.gather(*waiting) == ["UNKNOWN_KEY"] * 3
    assert rested == ["rests"] * 3 + ["works"] * 3
    await keys.key("known", "ES256")
