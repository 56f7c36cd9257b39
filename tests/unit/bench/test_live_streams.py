"""Live streams per core: what a delta costs, and when a row does not count."""

import pytest

from tests.bench import cores
from tests.bench.figures import Row
from tests.bench.measures.live_streams import LONG, PACES, SHORT, LiveRound, costs, rows_of


def _round(chunks: int, delta: float, *, fixed: float = 4.0, driving: float = 0.2) -> LiveRound:
    server = fixed + delta * chunks - 1.0
    return LiveRound(chunks, server, 1.0, (1.0, 2.0), float(chunks), [0.5, driving])


def _rows(*, at: int = 64, relay: float = 0.3, bare: float = 0.1, driving: float = 0.2) -> dict[str, Row]:
    costs_of = {"subject": 0.15, "F2": relay, "F5": 0.4, "F7": bare}
    results = {
        (name, chunks): [_round(chunks, delta, driving=driving if name == "subject" else 0.2)]
        for name, delta in costs_of.items()
        for chunks in PACES
    }
    return {row.name: row for row in rows_of(results, at=at)}


def test_a_core_carries_as_many_streams_as_answers_are_longer_than_their_cpu() -> None:
    assert PACES[LONG].seconds == pytest.approx(5.15)
    assert _round(LONG, 0.15, fixed=13.1).per_core == pytest.approx(5150 / (13.1 + 0.15 * 256))


def test_the_cost_of_a_delta_is_that_of_those_between_the_short_and_the_long_answer() -> None:
    further, fixed = costs([_round(SHORT, 0.15, fixed=12.0)], [_round(LONG, 0.15, fixed=12.0)])
    assert further == pytest.approx([0.15])
    assert fixed == pytest.approx([12.0])


def test_streams_are_beside_both_relays() -> None:
    rows = _rows()
    ours = rows["live.64.256"]
    assert ours.ratio == pytest.approx((4 + 0.3 * 256) / (4 + 0.15 * 256))
    assert rows["live.64.256.F7"].ratio == pytest.approx((4 + 0.1 * 256) / (4 + 0.15 * 256))
    assert rows["live.64.delta"].value == pytest.approx(0.15)
    assert not [row for row in rows.values() if row.void]


def test_a_slow_bare_relay_is_no_floor() -> None:
    rows = _rows(bare=0.13)
    assert {name for name, row in rows.items() if row.void} == {"live.64.64.F7", "live.64.256.F7", "F7.live.64.delta"}
    assert not [row for row in _rows(at=16, bare=0.15).values() if row.void]


def test_rows_do_not_count_while_the_load_has_too_little_of_its_core() -> None:
    assert not _rows(driving=0.79)["live.64.256"].void
    assert _rows(driving=0.81)["live.64.256"].void == "core 1 was at 81%"


def test_use_of_a_core_is_what_it_did_not_wait() -> None:
    before = cores.clock_of("cpu0 100 0 100 700 100 0 0 0 0 0")
    after = cores.clock_of("cpu0 130 0 110 740 110 5 0 5 0 0")
    assert cores.used([before], [after]) == [0.5]
