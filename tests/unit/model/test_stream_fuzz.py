"""Mutations of every stream of the table: the exact answer or one of our failures, and the same wherever it is cut.

`FUZZ_CASES=10000 pytest --hypothesis-seed=1` on this file tries as many of each kind as wanted, others with each seed.
Without FUZZ_CASES the cases are the same in every run.
"""

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_servers.mutations import EDGES, KINDS, LONGEST, mutated
from tests.model_servers.streams import DONE, Stream
from tests.model_servers.table import STREAMS
from tests.unit.model.reading import Read, by_the_standard, read
from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason

CASES = int(os.environ.get("FUZZ_CASES", "700"))
"""Cases of each of the three kinds."""
NOISE = (
    b": keep-alive\n\n",
    b"event: message\nid: 7\nretry: 9\n\n",
    b"data:\n\n",
    b"data\n\n",
    b'data: {"type":"ping"}\n\n',
    b'data: {"choices":[]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}],"usage":null}\n\n',
)
POSITIONS = st.integers(0, 2**20)
PLACES = st.lists(POSITIONS, max_size=6)
CUTS = st.one_of(PLACES, PLACES, PLACES, PLACES, PLACES, PLACES, st.none())
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        POSITIONS,
        st.integers(1, LONGEST),
        st.one_of(st.sampled_from(EDGES), st.binary(min_size=1, max_size=3)),
    ),
    min_size=1,
    max_size=4,
)
fuzz = settings(
    max_examples=CASES,
    derandomize="FUZZ_CASES" not in os.environ,  # hypothesis would take no notice of a seed
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def expected(stream: Stream) -> Read:
    """Returns what the table has for the stream."""
    return Read(stream.text, stream.calls if isinstance(stream.end, FinishReason) else (), stream.end)


def cut(body: bytes, places: Sequence[int] | None) -> list[bytes]:
    """Returns the body in parts: cut at these places, for None at every byte."""
    if places is None:
        return [bytes([byte]) for byte in body]
    edges = sorted(place % (len(body) + 1) for place in places)
    return [body[start:end] for start, end in pairwise([0, *edges, len(body)])]


def is_events(stream: Stream) -> bool:
    """Returns True if the stream is events in lines that end with LF."""
    return stream.body.startswith(b"data: ") and b"\r" not in stream.body and b"\ndata: " in stream.body


def text_by_the_standard(body: bytes) -> str | None:
    """Returns the text of a stream of plain deltas, read by the standards alone; None if it has anything else."""
    texts: list[Any] = []
    for event in by_the_standard(body):
        if event.strip() == b"[DONE]":
            break
        try:
            chunk: Any = json.loads(event)
            (choice,) = chunk["choices"] or [{"delta": {}}]
            texts.append(choice["delta"].get("content") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if choice.keys() - {"index", "delta", "finish_reason"} or choice.get("index") or "error" in chunk:
            return None
        if not isinstance(texts[-1], str) or choice["delta"].keys() - {"role", "content"}:
            return None
    return "".join(texts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@fuzz
@given(
    stream=st.sampled_from([stream for stream in STREAMS if is_events(stream)]),
    noise=st.lists(st.tuples(POSITIONS, st.sampled_from(NOISE)), max_size=5),
    line_end=st.sampled_from([b"\n", b"\r", b"\r\n"]),
    mark=st.booleans(),
    ends=st.sampled_from(["as it is", "without [DONE]", "with more after it"]),
    places=CUTS,
)
def test_what_changes_nothing_changes_nothing(
    stream: Stream, noise: list[tuple[int, bytes]], line_end: bytes, mark: bool, ends: str, places: list[int] | None
) -> None:
    events = stream.body.split(b"\n\n")
    for position, bytes_between in noise:
        events.insert(position % len(events), bytes_between.removesuffix(b"\n\n"))
    body = b"\n\n".join(events)
    if ends == "without [DONE]" and stream.end is not Reason.NO_FINISH_REASON:
        body = body.replace(DONE, b"")
    if ends == "with more after it" and stream.body.endswith(DONE):
        body += b'data: {"choices":[{"delta":{"content":"too late"}}]}\n\ndata: {'
    body = (b"\xef\xbb\xbf" if mark else b"") + body.replace(b"\n", line_end)
    assert read(cut(body, places)) == expected(stream)


@fuzz
@given(stream=st.sampled_from(STREAMS), end=POSITIONS, places=CUTS)
def test_an_answer_that_ends_early_is_whole_or_a_failure(stream: Stream, end: int, places: list[int] | None) -> None:
    body = stream.body[: end % (len(stream.body) + 1)]
    outcome = read(cut(body, places))
    assert outcome == expected(stream) or isinstance(outcome.end, Reason)
    assert stream.text.startswith(outcome.text.removesuffix("\ufffd"))


@fuzz
@given(stream=st.sampled_from(STREAMS), mutations=MUTATIONS, places=CUTS)
def test_garbage_is_read_alike_wherever_it_is_cut(
    stream: Stream, mutations: list[tuple[str, int, int, bytes]], places: list[int] | None
) -> None:
    body = mutated(stream.body, mutations)
    outcome = read([body])
    assert read(cut(body, places)) == outcome
    text = text_by_the_standard(body) if body.startswith(b"data:") else None
    if text is not None and isinstance(outcome.end, FinishReason):
        assert outcome.text == text
    assert all(orjson.dumps(arguments) for _, arguments in outcome.calls)
