"""Tokens: each bad one has its own reason, and a good one is checked once."""

import hmac
import json
import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import Call, Issuer, bearer
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.errors import ServiceUnavailable, Unauthenticated
from turnkeeper.identity.checked_tokens import CheckedTokens
from turnkeeper.identity.credential import Credential, CredentialKind
from turnkeeper.identity.key_set import KeySet
from turnkeeper.identity.key_source import KeysUnreadable
from turnkeeper.identity.tokens import MOST_BYTES, SKEW, Tokens
from turnkeeper.setting_types import ALGORITHMS as ALL

ALGORITHMS = ("ES256", "RS256")
KNOWN = Issuer()


class Source:
    """Keys that a test changes."""

    name = "keys of the test"

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys: list[dict[str, Any]] | None = list(keys)
        """None: they cannot be read."""
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        if self.keys is None:
            raise KeysUnreadable("it is away")
        return json.dumps({"keys": self.keys}).encode()

    async def close(self) -> None:
        pass


def tokens_of(source: Source) -> Tokens:
    keys = KeySet(source, algorithms=ALGORITHMS, age=timedelta(minutes=5))
    return Tokens(keys, issuer=ISSUER, audience=AUDIENCE, algorithms=ALGORITHMS)


async def reason_of(tokens: Tokens, *values: str) -> str:
    return await reason_of_call(tokens, Call(bearer(*values)))


async def reason_of_call(tokens: Tokens, call: Call) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await tokens.credential(call)
    assert list(refused.value.metadata) == ["reason"]
    return refused.value.metadata["reason"]


async def test_a_good_token_names_its_issuer_and_subject() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    claims = issuer.claims(groups=["finance"])
    credential = await tokens.credential(Call(bearer(issuer.token(**claims))))
    assert credential == Credential(
        CredentialKind.TOKEN, f"{ISSUER} ada", claims=claims, expires_at=claims["exp"] + SKEW
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": 1}, "EXPIRED"),
        ({"iss": "https://another.invalid"}, "WRONG_ISSUER"),
        ({"aud": "another"}, "WRONG_AUDIENCE"),
        ({"aud": []}, "MALFORMED"),
        ({"sub": "ada\n2026-11-29 a line of the log"}, "MALFORMED"),
        ({"sub": "half of a character: \ud800"}, "MALFORMED"),
        ({"nbf": 4_000_000_000}, "NOT_YET_VALID"),
        ({"iat": 4_000_000_000}, "NOT_YET_VALID"),
        ({"exp": None}, "MALFORMED"),
        ({"iss": None}, "MALFORMED"),
        ({"aud": None}, "MALFORMED"),
        ({"sub": None}, "MALFORMED"),
        ({"sub": 7}, "MALFORMED"),
        ({"exp": "soon"}, "MALFORMED"),
        ({"exp": float("inf")}, "MALFORMED"),
        ({"exp": [1]}, "MALFORMED"),
        ({"nbf": {}}, "MALFORMED"),
        ({"aud": 7}, "WRONG_AUDIENCE"),
        ({"iss": [ISSUER]}, "WRONG_ISSUER"),
    ],
)
async def test_a_token_with_a_wrong_claim(changed: dict[str, Any], reason: str) -> None:
    issuer = Issuer()
    claims = {name: value for name, value in {**issuer.claims(), **changed}.items() if value is not None}
    header = jwt.encode({}, issuer.key, algorithm="ES256", headers={"kid": issuer.key_id}).partition(".")[0]
    token = signed(header, json.dumps(claims).encode(), issuer)
    assert await reason_of(tokens_of(Source(issuer.jwk())), token) == reason


def signed(header: str, payload: bytes, issuer: Issuer) -> str:
    """Returns a token with these bytes as its payload, whatever they are."""
    part = f"{header}.{jwt.utils.base64url_encode(payload).decode()}"
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).sign(part.encode(), issuer.key)
    return f"{part}.{jwt.utils.base64url_encode(signature).decode()}"


async def test_clocks_may_differ_by_the_skew_and_no_more() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    now = int(time.time())
    for token in (issuer.token(exp=now - SKEW + 20), issuer.token(nbf=now + SKEW - 20)):
        await tokens.credential(Call(bearer(token)))
    assert await reason_of(tokens, issuer.token(exp=now - SKEW - 1)) == "EXPIRED"
    assert await reason_of(tokens, issuer.token(nbf=now + SKEW + 20)) == "NOT_YET_VALID"


async def test_a_missing_token_and_two_tokens() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    assert await reason_of(tokens) == "MISSING"
    assert await reason_of(tokens, issuer.token(), issuer.token()) == "SEVERAL"
    joined = f"{issuer.token()}, Bearer {issuer.token()}"
    assert await reason_of(tokens, joined) == "MALFORMED"


async def test_a_long_token_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    source = Source(issuer.jwk())
    token = issuer.token(padding="x" * (16 << 10))
    parsed: list[str] = []
    monkeypatch.setattr(jwt, "get_unverified_header", parsed.append)
    assert await reason_of(tokens_of(source), token) == "MALFORMED"
    assert not parsed
    assert source.reads == 0


async def test_a_token_of_the_greatest_length_passes() -> None:
    issuer = Issuer()
    spare = MOST_BYTES - len(issuer.token(padding=""))
    token = issuer.token(padding="x" * (spare * 3 // 4))
    assert MOST_BYTES - 4 < len(token) <= MOST_BYTES
    assert (await tokens_of(Source(issuer.jwk())).credential(Call(bearer(token)))).id.endswith(" ada")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YWRhOmE=",
        "Bearer a.b",
        "Bearer a.b.c",
        "Bearer ...",
        "Bearer é.é.é",
        "Bearer  a",
    ],
)
async def test_what_is_no_token_at_all(value: str) -> None:
    tokens = tokens_of(Source(Issuer().jwk()))
    assert await reason_of_call(tokens, Call([("authorization", value)])) == "MALFORMED"


@given(st.text(max_size=200), st.binary(max_size=100), st.binary(max_size=100))
async def test_no_value_is_an_error_of_another_kind(text: str, header: bytes, payload: bytes) -> None:
    """Whatever comes, it is Unauthenticated: never INTERNAL."""
    issuer = KNOWN
    tokens = tokens_of(Source(issuer.jwk()))
    encode = jwt.utils.base64url_encode
    known = jwt.encode({}, issuer.key, algorithm="ES256", headers={"kid": issuer.key_id}).partition(".")[0]
    for token in (text, f"{encode(header).decode()}.{encode(payload).decode()}.AA", signed(known, payload, issuer)):
        await reason_of_call(tokens, Call([("authorization", f"Bearer {token}")]))


async def test_the_scheme_may_be_in_any_case() -> None:
    issuer = Issuer()
    call = Call([("authorization", f"bEARER {issuer.token()}")])
    assert (await tokens_of(Source(issuer.jwk())).credential(call)).kind is CredentialKind.TOKEN


async def test_an_unsigned_token_and_one_signed_by_the_public_key_as_a_password() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    unsigned = jwt.encode(issuer.claims(), "", algorithm="none", headers={"kid": issuer.key_id})
    assert await reason_of(tokens, unsigned) == "WRONG_ALGORITHM"
    public = issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    header = jwt.utils.base64url_encode(json.dumps({"alg": "HS256", "kid": issuer.key_id}).encode()).decode()
    part = f"{header}.{issuer.token().split('.')[1]}"
    signature = jwt.utils.base64url_encode(hmac.digest(public, part.encode(), "sha256")).decode()
    assert await reason_of(tokens, f"{part}.{signature}") == "WRONG_ALGORITHM"


async def test_an_algorithm_that_is_not_allowed_or_not_the_keys_own() -> None:
    issuer = Issuer()
    source = Source(issuer.jwk())
    tokens = tokens_of(source)
    unknown = issuer.token(algorithm="HS256", key="a password of 32 bytes at least ", header={"kid": "unknown"})
    assert await reason_of(tokens, unknown) == "WRONG_ALGORITHM"
    assert source.reads == 0, "it causes no fetch"
    key = rsa.generate_private_key(65537, 2048)
    assert await reason_of(tokens, issuer.token(algorithm="PS256", key=key)) == "WRONG_ALGORITHM"
    assert await reason_of(tokens, issuer.token(algorithm="RS256", key=key)) == "WRONG_ALGORITHM"


async def test_a_header_that_is_none() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    for header in (b"[]", b"{}", b'{"alg":7}', b'{"alg":"ES256","kid":7}', b"\xff", b"[" * 3000, b'{"alg":["ES256"]}'):
        token = signed(jwt.utils.base64url_encode(header).decode(), b"{}", issuer)
        assert await reason_of(tokens, token) in ("MALFORMED", "WRONG_ALGORITHM"), header
    for header in (
        b'{"alg":"ES256","kid":"dev","crit":["x"],"x":1}',
        b'{"alg":"ES256","kid":"dev","b64":false,"crit":["b64"]}',
    ):
        token = signed(jwt.utils.base64url_encode(header).decode(), json.dumps(issuer.claims()).encode(), issuer)
        assert await reason_of(tokens, token) == "MALFORMED", header


async def test_another_key_of_the_same_id_and_a_changed_payload() -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    assert await reason_of(tokens, Issuer().token()) == "BAD_SIGNATURE"
    header, _, signature = issuer.token().split(".")
    payload = issuer.token(sub="eve").split(".")[1]
    assert await reason_of(tokens, f"{header}.{payload}.{signature}") == "BAD_SIGNATURE"


async def test_what_a_wrong_signature_signs_is_not_looked_at() -> None:
    """The reason tells nothing of claims that are not the issuer's."""
    assert await reason_of(tokens_of(Source(Issuer().jwk())), Issuer().token(exp=1)) == "BAD_SIGNATURE"


async def test_an_unknown_key_and_keys_that_cannot_be_fetched() -> None:
    source = Source(Issuer().jwk())
    assert await reason_of(tokens_of(source), Issuer("another").token()) == "UNKNOWN_KEY"
    source.keys = None
    with pytest.raises(ServiceUnavailable) as unavailable:
        await tokens_of(source).credential(Call(bearer(Issuer().token())))
    assert unavailable.value.metadata == {"reason": "KEYS_UNAVAILABLE"}
    assert unavailable.value.retry_after == timedelta(seconds=1)


async def test_a_token_without_a_key_id_needs_one_key_alone() -> None:
    issuer = Issuer()
    token = jwt.encode(issuer.claims(), issuer.key, algorithm="ES256")
    assert (await tokens_of(Source(issuer.jwk())).credential(Call(bearer(token)))).kind is CredentialKind.TOKEN
    assert await reason_of(tokens_of(Source(issuer.jwk(), Issuer("two").jwk())), token) == "UNKNOWN_KEY"


async def test_a_token_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    tokens = tokens_of(Source(issuer.jwk()))
    token = issuer.token()
    first = await tokens.credential(Call(bearer(token)))
    monkeypatch.setattr(jwt, "decode", None)
    assert await tokens.credential(Call(bearer(token))) is first


def test_checked_tokens_end_with_the_token_and_with_the_keys() -> None:
    now = 100.0
    checked = CheckedTokens(clock=lambda: now)
    credential = Credential(CredentialKind.TOKEN, "ada", expires_at=200.0)
    checked.put("token", credential, version=1)
    assert checked.get("token", version=1) is credential
    assert checked.get("another", version=1) is None
    now = 200.0
    assert checked.get("token", version=1) is None
    assert len(checked) == 0
    now = 100.0
    checked.put("token", credential, version=1)
    assert checked.get("token", version=2) is None


def test_checked_tokens_have_a_bound() -> None:
    checked = CheckedTokens(most_bytes=100)
    for number in range(50):
        checked.put(f"{number:010}", Credential(CredentialKind.TOKEN, str(number)), version=1)
    checked.put(f"{49:010}", Credential(CredentialKind.TOKEN, "again"), version=1)
    assert len(checked) == 10
    assert checked.get(f"{39:010}", version=1) is None
    assert checked.get(f"{40:010}", version=1) == Credential(CredentialKind.TOKEN, "40")


async def test_keys_of_every_algorithm_that_can_be_allowed() -> None:
    keys: dict[str, Any] = {name: rsa.generate_private_key(65537, 2048) for name in ALL if name[0] in "RP"}
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    keys |= {name: ec.generate_private_key(curve) for name, curve in curves.items()}
    keys["EdDSA"] = Ed25519PrivateKey.generate()
    assert set(keys) == set(ALL)
    jwks = []
    for name, key in keys.items():
        algorithm: Any = jwt.algorithms.get_default_algorithms()[name]
        jwks.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name})
    key_set = KeySet(Source(*jwks), algorithms=ALL, age=timedelta(minutes=5))
    tokens = Tokens(key_set, issuer=ISSUER, audience=AUDIENCE, algorithms=ALL)
    issuer = Issuer()
    for name, key in keys.items():
        token = issuer.token(algorithm=name, key=key, header={"kid": name})
        assert (await tokens.credential(Call(bearer(token)))).kind is CredentialKind.TOKEN, name
