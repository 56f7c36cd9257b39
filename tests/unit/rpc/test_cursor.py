"""Cursors: a position in one session of one tenant; any other text is refused, and the error names the field."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import InvalidRequest
from turnkeeper.rpc import cursor

POSITION = StreamPosition(sequence=7, message_id="01aryz6s41tsv4rrffq69g5fav", attempt=2, offset=1234, live=True)
TEXT = cursor.encode(POSITION, key=SessionKey("default", "s"))

ids = st.text(alphabet=st.sampled_from("abcXYZ019._:-"), max_size=40)
positions = st.builds(
    StreamPosition,
    sequence=st.integers(0, 2**63 - 1),
    history=st.text(alphabet=st.sampled_from("0123abcxyz-"), max_size=8),
    message_id=ids,
    attempt=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    live=st.booleans(),
)


def decode(text: str, *, tenant: str = "default", session_id: str = "s") -> StreamPosition:
    return cursor.decode(text, key=SessionKey(tenant, session_id))


@given(positions, ids, ids)
def test_a_cursor_leads_to_its_position(position: StreamPosition, tenant: str, session_id: str) -> None:
    text = cursor.encode(position, key=SessionKey(tenant, session_id))
    assert cursor.decode(text, key=SessionKey(tenant, session_id)) == position


def test_a_cursor_of_an_earlier_version_leads_to_its_position() -> None:
    earlier = "AQAAAAAAAAAHAAAAAgAAAAAAAATSATAxYXJ5ejZzNDF0c3Y0cnJmZnE2OWc1ZmF2iwSiBhqxWZY"
    assert decode(earlier) == POSITION
    assert earlier == TEXT


@given(positions)
def test_a_cursor_has_at_most_200_characters_of_ascii(position: StreamPosition) -> None:
    text = cursor.encode(position, key=SessionKey("default", "s" * 128))
    assert len(text) <= 200
    assert text.isascii()
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(("tenant", "session_id"), [("default", "t"), ("other", "s"), ("", "s"), ("defaults", "")])
def test_a_cursor_of_another_session_or_tenant_is_refused(tenant: str, session_id: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(TEXT, tenant=tenant, session_id=session_id)
    assert raised.value.fields["after"].startswith("is not a cursor of this session")
    assert raised.value.session_id == session_id


def test_tenant_and_session_cannot_run_together() -> None:
    text = cursor.encode(POSITION, key=SessionKey("a", "bc"))
    with pytest.raises(InvalidRequest):
        decode(text, tenant="ab", session_id="c")


@pytest.mark.parametrize("length", range(len(TEXT)))
def test_a_truncated_cursor_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest):
        decode(TEXT[:length])


@given(st.text(max_size=100))
def test_no_text_of_a_callers_own_is_a_cursor(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(text)


@given(st.binary(max_size=80))
def test_no_bytes_of_a_callers_own_are_a_cursor(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(base64.urlsafe_b64encode(data).decode().rstrip("="))


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("ABCDefgh0189-_"))
def test_one_other_character_breaks_it(index: int, character: str) -> None:
    changed = TEXT[:index] + character + TEXT[index + 1 :]
    if base64.urlsafe_b64decode(changed + "==") == base64.urlsafe_b64decode(TEXT + "=="):
        return
    with pytest.raises(InvalidRequest):
        decode(changed)


def test_a_cursor_of_another_version_is_refused() -> None:
    body = bytes([cursor.VERSION + 1]) + base64.urlsafe_b64decode(TEXT + "==")[1 : -cursor.CHECK_BYTES]
    check = cursor._check(body, SessionKey("default", "s"))  # noqa: SLF001 - a later version signs the same way
    with pytest.raises(InvalidRequest):
        decode(base64.urlsafe_b64encode(body + check).decode().rstrip("="))
