"""Reads an answer's bytes without a network, and events by the standard's own steps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from turnkeeper.domain.message import FinishReason, Message, Role
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason

REQUEST = ModelRequest(model="asked-for", messages=(Message(role=Role.USER, text="hello"),))


@dataclass(frozen=True, slots=True)
class Read:
    """What became of an answer."""

    text: str
    calls: tuple[tuple[str, str], ...]
    end: FinishReason | Reason


def answer_of(parts: Sequence[bytes], *, texts: list[str] | None = None) -> ModelAnswer:
    """Returns the answer in a body that ends in order; adds its text to `texts` as it arrives. Raises ModelFailure."""
    reader = AnswerReader(REQUEST, max_answer_bytes=200 * 1024)
    texts = [] if texts is None else texts
    try:
        for part in parts:
            reader.feed(part)
            texts.append(reader.new_text())
            if reader.done:
                break
        else:
            reader.end()
    finally:
        texts.append(reader.new_text())
    return reader.answer()


def read(parts: Sequence[bytes]) -> Read:
    """Returns what becomes of an answer in these parts. Raises AssertionError if its text is not that of its deltas."""
    texts: list[str] = []
    try:
        answer = answer_of(parts, texts=texts)
    except ModelFailure as failure:
        return Read("".join(texts), (), Reason(failure.detail.metadata["reason"]))
    assert answer.text == "".join(texts)
    calls = tuple((call.tool, call.arguments_json) for call in answer.tool_requests)
    return Read(answer.text, calls, answer.finish_reason)


def by_the_standard(stream: bytes) -> list[bytes]:
    """Returns the events of a whole stream, by the standard's own steps; those without data are left out."""
    *lines, _ = re.split(b"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    data, events = b"", list[bytes]()
    for line in lines:
        if not line:
            events += [data.removesuffix(b"\n")] if data.strip() else []
            data = b""
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            data += value.removeprefix(b" ") + b"\n" if name == b"data" else b""
    return events
