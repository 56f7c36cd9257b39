"""What a request to the pacing model names, and what it answers: chunks of 8 characters, each at its intended time.

The first chunk is the intended time of itself, in microseconds of the machine's monotonic clock; every later one is its
number. So a reader of the answer knows the intended time of each chunk, and that none is missing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 8
"""Characters of a chunk, all of them ASCII."""
_WRAP: Final = 1 << 32
"""Microseconds after which the first chunk begins again at 0: 71 minutes."""
_WORDS: Final = re.compile(rb"(\d+) chunks, (\d+) ms apart, the first after (\d+) ms")


@dataclass(frozen=True, slots=True)
class Pace:
    """An answer of this many chunks, `apart_ms` apart; the first one `first_ms` after the request."""

    chunks: int
    apart_ms: int = 20
    first_ms: int = 50

    @property
    def words(self) -> list[int]:
        """The same as a job takes it."""
        return [self.chunks, self.apart_ms, self.first_ms]

    @property
    def message(self) -> str:
        """The message that asks the pacing model for it."""
        return f"{self.chunks} chunks, {self.apart_ms} ms apart, the first after {self.first_ms} ms"

    @property
    def seconds(self) -> float:
        """How long the model takes for it, from the request to the last chunk."""
        return (self.first_ms + (self.chunks - 1) * self.apart_ms) / 1000


def pace_of(body: bytes) -> Pace | None:
    """Returns the pace that the last message in a request's body asks for; None if none does."""
    matches = _WORDS.findall(body)
    return Pace(*map(int, matches[-1])) if matches else None


def first_chunk(at: float) -> str:
    """Returns the first chunk of an answer that is intended to begin at this time."""
    return f"{round(at * 1e6) % _WRAP:08x}"


def later_chunk(number: int) -> str:
    """Returns the chunk of this number; the first is number 0 and not made here."""
    return f"{number:07} "


def is_whole(text: str, pace: Pace) -> bool:
    """Returns whether the text is an answer at this pace, to the last character."""
    return re.fullmatch("[0-9a-f]{8}", text[:CHUNK]) is not None and text[CHUNK:] == "".join(
        later_chunk(number) for number in range(1, pace.chunks)
    )


def lateness(arrivals: Sequence[tuple[float, int]], text: str, pace: Pace) -> list[float]:
    """Returns by how many seconds each chunk came after its intended time.

    `arrivals`: times, and how many characters were there by then, in order. `text` is the whole answer.
    """
    late, number = list[float](), 0
    for at, length in arrivals:
        while number < pace.chunks and (number + 1) * CHUNK <= length:
            late.append(_since(text, at) - number * pace.apart_ms / 1000)
            number += 1
    return late


def _since(text: str, at: float) -> float:
    """Returns the seconds from the first chunk's intended time to this time, within half of the wrap."""
    micros = (round(at * 1e6) - int(text[:CHUNK], 16)) % _WRAP
    return (micros - _WRAP if micros >= _WRAP // 2 else micros) / 1e6
