"""How real model servers write an answer: the bytes that each sends, and what the answer is.

One table for the contract suite, which plays each over HTTP, for the fuzz of the reader, and for the guide's page.
"""

from collections.abc import Mapping, Sequence

from tests.model_servers.answers import ENDINGS, FRAMINGS, SHAPES
from tests.model_servers.calls import PARTS, ROUND_TRIPS
from tests.model_servers.streams import Stream

TABLE: Mapping[str, Sequence[Stream]] = {
    "What comes with a call": ROUND_TRIPS,
    "How an answer is written": FRAMINGS,
    "Where an answer stands": SHAPES,
    "Which part belongs to which call": PARTS,
    "How an answer ends": ENDINGS,
}
"""The whole table, by the headings of the guide's page."""
STREAMS: Sequence[Stream] = tuple(stream for group in TABLE.values() for stream in group)


def name_of(stream: Stream) -> str:
    """Returns a name for the stream in a test's id."""
    return f"{stream.server}: {stream.what}".replace("`", "")
