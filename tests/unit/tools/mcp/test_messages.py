"""What an MCP server may send: lines are cut in bounded memory, and a large message never reaches the SDK."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCResponse

from turnkeeper.tools.mcp.messages import (
    MESSAGE_BYTES,
    MOST_ENTRIES,
    MOST_PARTS,
    SKIPPED_BYTES,
    Ending,
    Endless,
    Lines,
    Pace,
    UnreadableLine,
    checked,
    ending_of,
    error_of,
    message_of,
)


@given(st.lists(st.binary(max_size=40)), st.integers(1, 50))
def test_lines_are_the_same_however_the_stream_is_cut(lines: list[bytes], size: int) -> None:
    content = b"\n".join(lines) + b"\n"
    cutter, cut = Lines(), list[object]()
    for at in range(0, len(content), size):
        cut += cutter.feed(content[at : at + size])
    assert cut == content.split(b"\n")[:-1]


@pytest.mark.parametrize("chunk", [1_000, 65_536, MESSAGE_BYTES + 5])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_line_that_is_too_long_is_skipped_and_its_request_is_answered(chunk: int, is_first: bool) -> None:
    text = json.dumps({"content": "x" * (2 * MESSAGE_BYTES)})
    long = f'{{"jsonrpc":"2.0","id":7,"result":{text}}}' if is_first else f'{{"result":{text},"jsonrpc":"2.0","id":7}}'
    content = b"before\n" + long.encode() + b"\nafter\n"
    lines, cut, kept = Lines(), list[bytes | UnreadableLine](), 0
    for at in range(0, len(content), chunk):
        cut += lines.feed(content[at : at + chunk])
        kept = max(kept, sum(map(len, lines._parts)) + len(lines._tail))  # noqa: SLF001 - its memory is the point
    assert [cut[0], cut[2]] == [b"before", b"after"]
    assert kept <= MESSAGE_BYTES + chunk
    assert isinstance(cut[1], UnreadableLine)
    answer = cut[1].error()
    assert answer is not None
    assert isinstance(answer.message, JSONRPCError)
    assert answer.message.id == 7
    assert ending_of(_raised(answer.message.error)) is Ending.UNFIT


def test_a_long_line_without_an_id_answers_no_request() -> None:
    (line,) = Lines().feed(b"x" * (MESSAGE_BYTES + 1) + b"\n")
    assert isinstance(line, UnreadableLine)
    assert line.error() is None


def test_a_line_without_an_end_is_given_up() -> None:
    lines = Lines()
    for _ in range(SKIPPED_BYTES // 65_536):
        assert not list(lines.feed(b"x" * 65_536))
    with pytest.raises(Endless):
        list(lines.feed(b"x"))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Loading...",
        b"[]",
        b"null",
        b'{"jsonrpc": "2.0"}',
        b'{"jsonrpc": "1.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": ' + b"[" * 10_000,
        b'{"jsonrpc": "2.0", "method": "m", "params": {"a": "\xff"}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":[' + b"1," * MOST_PARTS + b"1]}}",
    ],
)
def test_what_is_no_message_is_unreadable(line: bytes) -> None:
    assert isinstance(message_of(line), UnreadableLine)


@pytest.mark.parametrize(
    "result",
    [
        {"content": [{}] * 20_000},
        {"content": [{"type": "text", "text": "a", "annotations": {"audience": ["x"] * 300}}] * 100},
        {"tools": [{"name": "a", "icons": [{}] * 300}] * 40},
    ],
)
def test_a_message_that_the_sdk_would_examine_for_long_becomes_an_error(result: dict[str, Any]) -> None:
    message = checked(SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=4, result=result))).message
    assert isinstance(message, JSONRPCError)
    assert (message.id, ending_of(_raised(message.error))) == (4, Ending.UNFIT)
    news = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params=result)
    assert checked(SessionMessage(news)).message.model_dump()["method"] == "turnkeeper/refused"


@pytest.mark.parametrize(
    "result", [{"content": [{"type": "text", "text": "a"}] * MOST_ENTRIES}, {"structuredContent": {"a": [1] * 20_000}}]
)
def test_a_message_of_an_honest_server_is_passed_on(result: dict[str, Any]) -> None:
    item = SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=4, result=result))
    assert checked(item) is item


def test_no_server_can_state_an_ending_of_ours() -> None:
    ours = error_of(Ending.NOT_SENT, "no connection")
    assert ending_of(_raised(ours)) is Ending.NOT_SENT
    for data in (None, "not sent", {"ending": "not sent"}, ["not sent"], {}):
        assert ending_of(MCPError(code=ours.code, message="no connection", data=data)) is None


def test_a_flood_is_read_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    assert pace.spend(Pace.BURST) == 0
    assert pace.spend(Pace.RATE) == 1.0
    now += 2.0
    assert pace.spend(Pace.RATE) == 0


def _raised(error: ErrorData) -> MCPError:
    """Returns the error as the SDK raises it."""
    return MCPError(code=error.code, message=error.message, data=error.data)
