"""Page tokens: valid for one list, one tenant and one set of filters, and for nothing else."""

import asyncio
import base64
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.errors import PageTokenInvalid
from turnkeeper.identity.caller import DEFAULT_CALLER, Caller
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2
from turnkeeper.rpc.page_tokens import MAX_SIZE, PageKey, PageTokens, key_of_time, time_of_key

TOKENS = PageTokens(b"key" * 11)
LIST = session_pb2.ListSessionsRequest(agent="clerk", labels={"a": "1", "b": "2"}, page_size=2)
ITEMS = ["one", "two", "three"]


def token_for(
    request: Message, *, caller: Caller = DEFAULT_CALLER, tokens: PageTokens = TOKENS, at: str = "two"
) -> str:
    page = tokens.page(ITEMS, request, caller=caller, size=2, key_of=lambda _: (at, 7), view=view)
    return asyncio.run(page)[1]


def view(name: str) -> session_pb2.Session:
    return session_pb2.Session(session_id=name)


TOKEN = token_for(LIST)


def after(request: Message, token: str, *, caller: Caller = DEFAULT_CALLER) -> PageKey | None:
    again = type(request)()
    again.CopyFrom(request)
    again.page_token = token  # type: ignore[attr-defined]
    return TOKENS.after(again, caller=caller)


def test_a_token_leads_to_its_key() -> None:
    assert after(LIST, TOKEN) == ("two", 7)


def test_without_a_token_the_list_begins() -> None:
    assert TOKENS.after(LIST, caller=DEFAULT_CALLER) is None


def page_of(items: list[str], size: int) -> tuple[list[str], str]:
    page, token = asyncio.run(
        TOKENS.page(items, LIST, caller=DEFAULT_CALLER, size=size, key_of=lambda item: (item,), view=view)
    )
    return [session.session_id for session in page], token


def test_the_last_page_has_no_token() -> None:
    assert page_of(ITEMS[:2], 2) == (ITEMS[:2], "")
    assert page_of([], 2) == ([], "")
    first, token = page_of(ITEMS, 2)
    assert first == ITEMS[:2]
    assert after(LIST, token) == ("two",)


def test_a_page_ends_before_it_is_too_large_to_send() -> None:
    large = [f"{number}" * 400_000 for number in range(1, 6)]
    first, token = page_of(large, 4)
    assert first == large[:2]
    assert after(LIST, token) == (large[1],)
    assert page_of(["x" * 5_000_000, "y"], 2)[0] == ["x" * 5_000_000], "a page has at least one item"
    assert page_of(large[3:], 4) == (large[3:], "")


def test_the_next_page_may_have_another_size() -> None:
    other = session_pb2.ListSessionsRequest(agent="clerk", labels={"b": "2", "a": "1"}, page_size=50)
    assert after(other, TOKEN) == ("two", 7)


@pytest.mark.parametrize(
    "request_",
    [
        session_pb2.ListSessionsRequest(agent="other", labels=LIST.labels),
        session_pb2.ListSessionsRequest(agent="clerk"),
        session_pb2.ListSessionsRequest(agent="clerk", labels={"a": "1", "b": "3"}),
        session_pb2.ListSessionsRequest(agent="clerk", labels=LIST.labels, order_by="create_time"),
        session_pb2.ListSessionsRequest(agent="clerk", labels=LIST.labels, states=[session_pb2.SESSION_STATE_ENDED]),
        approval_pb2.ListApprovalsRequest(),
        chat_pb2.ListTurnsRequest(session_id="clerk"),
        session_pb2.ListMessagesRequest(session_id="clerk"),
    ],
)
def test_a_token_of_another_list_or_filter_is_refused(request_: Message) -> None:
    with pytest.raises(PageTokenInvalid):
        after(request_, TOKEN)


def test_two_lists_with_the_same_bytes_are_two_lists() -> None:
    token = token_for(chat_pb2.ListTurnsRequest(session_id="s"))
    assert after(chat_pb2.ListTurnsRequest(session_id="s"), token)
    with pytest.raises(PageTokenInvalid):
        after(session_pb2.ListMessagesRequest(session_id="s"), token)


def test_a_token_of_another_tenant_principal_or_key_is_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        after(LIST, TOKEN, caller=replace(DEFAULT_CALLER, tenant="other"))
    with pytest.raises(PageTokenInvalid):
        after(LIST, TOKEN, caller=replace(DEFAULT_CALLER, principal="anna"))
    with pytest.raises(PageTokenInvalid):
        after(LIST, token_for(LIST, tokens=PageTokens(b"another key" * 3)))


def forged(key: str) -> str:
    """Returns the token with another key and the old signature."""
    data = base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4))
    return base64.urlsafe_b64encode(data.replace(b"two", key.encode())).decode().rstrip("=")


@pytest.mark.parametrize(
    "token", [forged("one"), forged(""), "x", "é", "====", "AAAA", TOKEN[:-4], TOKEN[4:], TOKEN + "AAAA", " ", "\0"]
)
def test_a_forged_or_broken_token_is_refused(token: str) -> None:
    with pytest.raises(PageTokenInvalid):
        after(LIST, token)


@given(st.text(min_size=1, max_size=80))
def test_no_text_of_a_callers_own_is_a_token(token: str) -> None:
    with pytest.raises(PageTokenInvalid):
        after(LIST, token)


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("ABCDefgh0189-_"))
def test_one_other_character_breaks_it(index: int, character: str) -> None:
    changed = TOKEN[:index] + character + TOKEN[index + 1 :]
    data = [base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) for token in (changed, TOKEN)]
    if data[0] == data[1]:  # the last character holds two spare bits
        return
    with pytest.raises(PageTokenInvalid):
        after(LIST, changed)


@pytest.mark.parametrize(
    ("requested", "size"), [(0, 50), (1, 1), (100, 100), (101, MAX_SIZE), (2**31 - 1, MAX_SIZE), (-1, 50)]
)
def test_the_size_of_a_page(requested: int, size: int) -> None:
    assert TOKENS.size(requested) == size


def test_the_key_of_a_time_keeps_its_millisecond() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    assert time_of_key(key_of_time(at, "s")) == (at, "s")
    assert time_of_key(None) is None
