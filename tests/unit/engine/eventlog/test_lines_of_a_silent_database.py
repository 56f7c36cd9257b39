"""What becomes of those who stand in a session's line while the database does not answer."""

import asyncio
import contextlib
import time
from datetime import timedelta

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from turnkeeper.admission.gate import CURRENT, Gate, Kind
from turnkeeper.admission.load import Load
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog import session_lines
from turnkeeper.engine.eventlog.session_lines import SessionLines
from turnkeeper.errors import ServiceUnavailable, SessionContended
from turnkeeper.telemetry.metrics import Metrics

KEY = SessionKey("default", "session")


async def test_a_line_that_stands_because_the_database_is_down_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lines, "PATIENCE_S", 0.05)
    lines = SessionLines(lambda: 0.5)
    first = await lines.enter(KEY)
    second, third = (asyncio.create_task(lines.enter(KEY)) for _ in range(2))
    await asyncio.sleep(0)
    with pytest.raises(ServiceUnavailable), first:
        raise ServiceUnavailable
    with await second, pytest.raises(ServiceUnavailable):
        await third
    with await lines.enter(KEY), pytest.raises(SessionContended):
        await lines.enter(KEY)


async def test_who_stands_in_line_does_not_wait_for_the_database_after_one_that_did_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_lines, "IN_VAIN_S", 0.0)
    lines = SessionLines(lambda: 0.5)
    first = await lines.enter(KEY)
    behind = [asyncio.create_task(lines.enter(KEY)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ServiceUnavailable), first:
        raise ServiceUnavailable
    ended = await asyncio.gather(*behind, return_exceptions=True)
    assert [type(end) for end in ended] == [ServiceUnavailable] * 3
    assert not len(lines)
    with await lines.enter(KEY):
        pass  # the next one asks the database again


@pytest.mark.parametrize("looks", [True, False], ids=["a look", "a change"])
async def test_nor_do_those_who_wait_for_their_look(monkeypatch: pytest.MonkeyPatch, looks: bool) -> None:
    """Each would wait for the database once more: a caller far behind got its answer late."""
    monkeypatch.setattr(session_lines, "IN_VAIN_S", 0.0)
    lines, reached = SessionLines(lambda: 0.5), list[int]()

    async def look(number: int) -> None:
        async with lines.look(KEY):
            reached.append(number)

    async with contextlib.AsyncExitStack() as first:
        if looks:
            await first.enter_async_context(lines.look(KEY))
        else:
            first.enter_context(await lines.enter(KEY))
        behind = [asyncio.create_task(look(number)) for number in range(3)]
        await asyncio.sleep(0)
        with contextlib.suppress(ServiceUnavailable):
            async with first.pop_all():
                raise ServiceUnavailable
    ended = await asyncio.gather(*behind, return_exceptions=True)
    assert [type(end) for end in ended] == [ServiceUnavailable] * 3
    assert not reached
    assert not len(lines)
    await look(3)  # the next one asks the database again
    assert reached == [3]


async def test_a_caller_whose_own_deadline_passed_does_not_end_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lines, "IN_VAIN_S", 0.0)
    lines = SessionLines(lambda: 0.5)
    first = await lines.enter(KEY)
    second = asyncio.create_task(lines.enter(KEY))
    await asyncio.sleep(0)
    gate = Gate(Load(), timedelta(seconds=30), jitter=lambda: 0.5, recorder=Metrics(NoOpMeterProvider()))
    call = gate.admit(Kind.MESSAGE)
    call.wanted_until = time.monotonic() - 1
    CURRENT.set(call)
    with pytest.raises(ServiceUnavailable), first:
        raise ServiceUnavailable
    with await second:
        pass
