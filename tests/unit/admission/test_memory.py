"""One budget of memory: parts that can give back, give back first, in order; only then it counts as full."""

from datetime import timedelta

import pytest

from turnkeeper.admission.gate import CALL_BYTES, Gate, Kind
from turnkeeper.admission.load import Load
from turnkeeper.admission.memory import PROCESS_BYTES, SLACK, MemoryBudget, MemoryPart
from turnkeeper.errors import Overloaded

MOST = PROCESS_BYTES + 1000
SPARE = MOST // SLACK
"""Bytes that a cache gives back on top."""


class Cache:
    """A part whose bytes can all be given back."""

    def __init__(self, memory: MemoryBudget, name: str) -> None:
        self.part: MemoryPart = memory.part(name, shrink=self.shrink)

    def shrink(self, size: int) -> None:
        self.part.add(-min(size, self.part.used))


def full(memory: MemoryBudget) -> bool:
    """Returns `is_full`, of which mypy would think that it stays as it was."""
    return memory.is_full


def test_up_to_the_budget_nothing_is_given_back() -> None:
    memory = MemoryBudget(MOST)
    cache = Cache(memory, "cache")
    cache.part.add(600)
    memory.part("needed").add(400)
    assert (cache.part.used, full(memory)) == (600, False)


def test_beyond_it_caches_give_back_in_order_and_only_then_it_is_full() -> None:
    memory = MemoryBudget(MOST)
    first, second, needed = Cache(memory, "first"), Cache(memory, "second"), memory.part("needed")
    first.part.add(300)
    second.part.add(300)
    needed.add(500)
    assert (first.part.used, second.part.used, full(memory)) == (0, 300, False)
    needed.add(300)
    assert (second.part.used, full(memory)) == (0, False)
    needed.add(300)
    assert full(memory)


def test_caches_give_back_some_on_top_so_that_not_each_byte_asks_again() -> None:
    memory = MemoryBudget(MOST + 2 * SPARE)
    cache, needed = Cache(memory, "cache"), memory.part("needed")
    cache.part.add(1000 + 2 * SPARE)
    needed.add(1)
    before = cache.part.used
    assert before < 1000 + SPARE + 1
    needed.add(SPARE // 2)
    assert cache.part.used == before


def test_it_is_full_until_what_is_needed_has_gone() -> None:
    memory = MemoryBudget(MOST)
    needed = memory.part("needed")
    needed.add(1001)
    assert full(memory)
    needed.add(-1)
    assert not full(memory)


def test_reserved_bytes_are_no_other_parts() -> None:
    memory = MemoryBudget(MOST)
    bodies, size = memory.reserved("bodies", share=0.25, most=10_000)
    assert size == 250
    bodies.add(100_000)
    assert not full(memory)
    memory.part("needed").add(751)
    assert full(memory)
    assert memory.used() == {"process": PROCESS_BYTES, "bodies": 100_000, "needed": 751}


def test_without_a_limit_it_is_never_full() -> None:
    memory = MemoryBudget()
    memory.part("needed").add(1 << 50)
    assert not full(memory)


class Recorder:
    def refusal(self, kind: str, *, reason: str) -> None:
        self.last = (kind, reason)

    def set_call_limit(self, count: int) -> None:
        pass


@pytest.mark.parametrize("kind", [Kind.WATCH, Kind.MESSAGE, Kind.READ])
def test_a_full_budget_refuses_calls_except_decisions(kind: Kind) -> None:
    memory, recorder = MemoryBudget(PROCESS_BYTES + 2 * CALL_BYTES), Recorder()
    gate = Gate(Load(), timedelta(seconds=30), jitter=lambda: 0.5, recorder=recorder, memory=memory)
    call = gate.admit(Kind.WATCH)
    call.hold(CALL_BYTES + 1)
    with pytest.raises(Overloaded) as refusal:
        gate.admit(kind)
    assert refusal.value.metadata == {"limit": "memory"}
    assert refusal.value.retry_after is not None
    assert recorder.last == (kind.value, "memory")
    gate.admit(Kind.DECISION).end()
    call.rest()
    call.end()
    gate.admit(kind).end()
    assert memory.used()["calls"] == 0
