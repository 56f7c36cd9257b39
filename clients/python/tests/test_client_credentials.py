"""What a client calls with: when its token is renewed, and what goes over which connection."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator

import pytest

from turnkeeper_client import Client, Credentials
from turnkeeper_client.credentials import ON_BEHALF_OF, end_of, is_local
from turnkeeper_client.errors import Unauthenticated
from turnkeeper_client.pb.v1 import error_pb2, session_pb2
from turnkeeper_client.tokens import Tokens
from turnkeeper_client_testing.events import started, summary, watch_response
from turnkeeper_client_testing.server import Stage, Step, cut_off, refuse, stage

REFUSED = refuse(error_pb2.SESSION_ERROR_CODE_UNAUTHENTICATED)
ENDED = cut_off(error_pb2.SESSION_ERROR_CODE_UNAUTHENTICATED, cursor="c1")
SESSION = session_pb2.GetSessionResponse(session=session_pb2.Session(session_id="s1"))


class Source:
    """Counts its calls: the tokens are `t1`, `t2` and so on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        return f"t{self.calls}"


def sent(on: Stage) -> Iterator[str]:
    return (metadata["authorization"] for metadata in on.script.metadata)


async def test_calls_and_streams_carry_the_token_and_the_person() -> None:
    source = Source()
    async with stage([watch_response(started(1))], credentials=Credentials(token=source, on_behalf_of="ada")) as on:
        on.script.answers += [SESSION, SESSION]
        await on.client.session("s1").get()
        await on.client.session("s1").get()
        assert summary([event async for event in on.client.session("s1").follow()]) == [1]
        assert set(sent(on)) == {"Bearer t1"}
        assert {metadata[ON_BEHALF_OF] for metadata in on.script.metadata} == {"ada"}
    assert source.calls == 1


async def test_without_credentials_nothing_is_added() -> None:
    async with stage() as on:
        on.script.answers += [SESSION]
        await on.client.session("s1").get()
        assert not {"authorization", ON_BEHALF_OF} & on.script.metadata[0].keys()


async def test_a_refused_call_is_made_once_more_with_a_fresh_token() -> None:
    async with stage(credentials=Credentials(token=Source())) as on:
        on.script.answers += [REFUSED, SESSION]
        assert (await on.client.session("s1").get()).session_id == "s1"
        on.script.answers += [REFUSED, REFUSED]
        with pytest.raises(Unauthenticated):
            await on.client.session("s1").get()
        assert list(sent(on)) == ["Bearer t1", "Bearer t2", "Bearer t2", "Bearer t3"]


async def test_a_refused_call_without_a_source_is_made_once() -> None:
    async with stage(credentials=Credentials(on_behalf_of="ada")) as on:
        on.script.answers += [REFUSED]
        with pytest.raises(Unauthenticated):
            await on.client.session("s1").get()
        assert len(on.script.requests) == 1


async def test_a_stream_goes_on_with_a_fresh_token_at_its_cursor() -> None:
    first: list[Step] = [watch_response(started(1), cursor="c1"), ENDED]
    second: list[Step] = [watch_response(started(2), cursor="c2"), ENDED]
    third = [watch_response(started(3), cursor="c3")]
    async with stage(first, second, third, credentials=Credentials(token=Source())) as on:
        events = summary([event async for event in on.client.session("s1").follow()])
        assert events == [1, 2, 3]
        assert list(sent(on)) == ["Bearer t1", "Bearer t2", "Bearer t3"]
        assert [request.after for request in on.script.requests] == ["", "c1", "c1"]


async def test_a_stream_whose_fresh_token_is_refused_ends() -> None:
    async with stage([ENDED], [ENDED], [ENDED], credentials=Credentials(token=Source())) as on:
        with pytest.raises(Unauthenticated):
            _ = [event async for event in on.client.session("s1").follow()]
        assert list(sent(on)) == ["Bearer t1", "Bearer t2"]


async def test_an_error_of_the_source_is_the_callers() -> None:
    def source() -> str:
        raise OSError("the issuer is away")

    async with stage([], credentials=Credentials(token=source)) as on:
        with pytest.raises(OSError, match="the issuer is away"):
            await on.client.session("s1").get()
        with pytest.raises(OSError, match="the issuer is away"):
            _ = [event async for event in on.client.session("s1").follow()]


def token_until(end: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": end}).encode()).decode().rstrip("=")
    return f"a.{payload}.c"


async def test_a_token_is_renewed_before_its_end_and_by_one_call_of_the_source() -> None:
    now = time.time()
    lifetimes = iter([60.0, 3600.0, 3600.0])

    async def source() -> str:
        await asyncio.sleep(0)
        return token_until(now + next(lifetimes))

    tokens = Tokens(source)
    first = await asyncio.gather(*(tokens.get() for _ in range(10)))
    assert len(set(first)) == 1
    assert await tokens.get() == first[0]
    tokens.reject(first[0])
    second = await asyncio.gather(*(tokens.get() for _ in range(10)))
    assert len({*first, *second}) == 2
    tokens.reject(first[0])
    assert await tokens.get() == second[0], "a late refusal of an old token does not drop the new one"


def test_the_end_of_a_token_is_read_where_there_is_one() -> None:
    end = time.time() + 600
    assert end_of(token_until(end)) == end
    for token in ("", "opaque", "a.b.c", "a.bm90.c", "a.e30.c", "a.W10.c", token_until(1)):
        assert end_of(token) == float("inf"), token


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/run/s", True),
        ("ipv4:127.0.0.1:50051,127.0.0.2:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
        ("10.0.0.1:50051", False),
        ("turnkeeper.example.com:50051", False),
        ("localhost.example.com:50051", False),
    ],
)
async def test_a_token_leaves_the_machine_with_tls_alone(target: str, local: bool) -> None:
    assert is_local(target) is local
    credentials = Credentials(token=lambda: "t")
    if local:
        await Client(target, credentials=credentials).close()
    else:
        with pytest.raises(ValueError, match="a token in plain text can be read on its way"):
            Client(target, credentials=credentials)
    await Client(target, config="mesh", credentials=credentials).close()
    await Client(target, credentials=Credentials(ca=b"", token=lambda: "t")).close()


def test_a_certificate_without_its_key_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="certificate and key belong together"):
        Credentials(certificate=b"pem").tls()
    assert "secret" not in repr(Credentials(key=b"secret"))
