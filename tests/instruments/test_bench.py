"""A very small bench: it measures and writes, and a run with an incomplete turn is invalid."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.bench.__main__ import run
from tests.bench.bench import Bench, Measure, Scale
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import crowd, half_sent, offered, watch
from tests.bench.jobs.turns import create_sessions, read_back
from tests.bench.measures import MEASURES, watchers
from tests.bench.measures.live_streams import play
from tests.bench.pacing import Pace
from tests.bench.soak import mixed
from tests.demo.program import children
from tests.instruments import program
from tests.processes import alive

FLOORS = ("F1", "F2", "F2L", "F2A", "F4")
COLUMNS = {"name", "about", "value", "unit", "spread", "rounds", "floor", "ratio", "goal", "met", "void"}


@pytest.mark.timeout(240)
async def test_a_small_bench_measures_the_cost_of_turns(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    status, output = await program.run(
        "tests.bench", *["--only", "turns-16", "--rounds", "1", "--turns", "6", "--out"], out
    )
    assert status == 0, output
    rows = {figure["name"]: figure for figure in orjson.loads(out.read_bytes())}
    assert all(set(figure) == COLUMNS for figure in rows.values())
    assert {"turn.cpu.16", "turn.cpu.16.all", "turns.16", *(f"{name}.cpu.16" for name in FLOORS)} <= set(rows)
    assert all(figure["value"] > 0 for figure in rows.values())
    assert rows["turn.cpu.16"]["goal"] == "≤ 0.6 x"
    assert "goals met" in output


@pytest.mark.timeout(240)
async def test_a_turn_that_is_not_whole_makes_the_run_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def wrong(bench: Bench) -> list[Row]:
        """Creates sessions without a turn, then runs turns with another answer than the model's."""
        subject = await bench.parts.subject()
        sessions = await bench.parts.load.run(create_sessions, address=subject.address, count=2)
        with pytest.raises(Invalid, match="of 2 turns a majority has 0 as COMPLETED"):
            await bench.check(subject, sessions, ["an answer"] * 2)
        with pytest.raises(Invalid, match="its log has no whole turn"):
            await bench.parts.load.run(read_back, address=subject.address, sessions=sessions, answers=["an answer"] * 2)
        await bench.turns(subject, concurrency=2)
        await bench.turns(subject, concurrency=2, message="tell no one")
        return [row("never", "", [1.0], unit="")]

    out = tmp_path / "bench.json"
    assert await run([Measure("wrong", "wrong on purpose", wrong)], Scale(rounds=1, turns=4), out) == 1
    assert not out.exists()
    assert "this run is invalid: stream_turns: " in capsys.readouterr().err


@pytest.mark.timeout(240)
async def test_a_live_turn_creates_its_session_and_its_answer_is_exact(tmp_path: Path) -> None:
    async def live(bench: Bench) -> list[Row]:
        model = await bench.parts.pacing_model()
        async with bench.parts.server("live", OPENAI_BASE_URL=model.address) as server:
            result = await play(bench, server, Pace(8, apart_ms=2), count=4, concurrency=2)
        return [row("late", "", result.late_ms, unit="ms"), row("responses", "", [result.responses], unit="")]

    out = tmp_path / "bench.json"
    assert await run([Measure("live", "two streams", live)], Scale(rounds=1, turns=4, quick=True), out) == 0
    assert {figure["name"] for figure in orjson.loads(out.read_bytes())} == {"late", "responses"}


@pytest.mark.timeout(240)
async def test_load_crowds_attackers_and_mixed_users_do_what_their_rows_name(tmp_path: Path) -> None:
    results: dict[str, Any] = {}

    async def small(bench: Bench) -> list[Row]:
        parts = bench.parts
        model = await parts.pacing_model()
        async with parts.server("load", OPENAI_BASE_URL=model.address) as server, parts.runner("crowd") as runner:
            at = {"address": server.address}
            sessions = await parts.load.run(create_sessions, count=2, **at)
            words = {"prefix": "load-", "phases": [[20, 0.5]], "pace": [1, 0, 20]}
            results["turns"] = await parts.load.run(offered.offer_turns, **words, **at)
            results["reads"] = await parts.load.run(offered.offer_reads, sessions=sessions, phases=[[20, 0.5]], **at)
            results["rate"] = await parts.load.run(offered.saturate, pace=[1, 0, 20], concurrency=2, seconds=1, **at)
            one = {"session": sessions[0], **at}
            results["up"] = await runner.run(crowd.watch_together, count=5, seconds=20, tries_again=True, **one)
            results["got"] = await runner.run(crowd.end_a_turn, seconds=20, **one)
            results["called"] = await runner.run(crowd.call_together, callers=4, seconds=0.5, **one)
            results["halves"] = await runner.run(
                half_sent.send_halves, connections=2, streams=3, most_bytes=200_000, seconds=0.5, **at
            )
            await runner.run(half_sent.drop_halves)
            results["mixed"] = await parts.load.run(mixed.live, addresses=[server.address], users=3, seconds=2)
        return [row("done", "", [1.0], unit="")]

    assert await run([Measure("load", "a little", small)], Scale(quick=True), tmp_path / "bench.json") == 0
    assert [end for _, _, end in results["turns"]["records"]] == ["COMPLETED"] * 10
    assert [end for _, _, end in results["reads"]["records"]] == ["OK"] * 10
    assert results["rate"] > 0
    assert (results["up"]["up"], results["up"]["ends"], results["got"]["completed"]) == (5, {}, 5)
    assert results["called"]["OK"] > 0
    assert results["halves"] == {"sent": 200_000, "opened": 6, "ended": 0, "closed": 0}
    assert results["mixed"]["turns"] > 0


@pytest.mark.timeout(240)
async def test_a_small_bench_measures_watching_and_deciding(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    chosen = [measure for measure in MEASURES if measure.name in ("replay", "delivery", "decisions")]
    assert (
        await run([*chosen, Measure("watched", "one scene", _watched)], Scale(rounds=1, turns=4, quick=True), out) == 0
    )
    rows = {figure["name"]: figure for figure in orjson.loads(out.read_bytes())}
    assert rows["replay.events"]["ratio"] > 0
    assert rows["deliver.total_here.p50"]["value"] > 0
    assert rows["deliver.total_there.p50"]["value"] > 0
    assert rows["decision.completed.p50"]["value"] >= rows["decision.started.p50"]["value"]
    assert rows["watched"]["value"] > 0


async def _watched(bench: Bench) -> list[Row]:
    """Measures three watchers of the service and of its recorded floor; an answer that differs is refused."""
    results = await watchers.deliveries(bench, watchers.Scene(3, turns=2, quick_turns=2))
    events = {name: {result.events for result in rounds} for name, rounds in results.items()}
    assert events["F3"] == events["F3 live"]
    assert min(events["subject"]) >= 3 * 2 * 4
    server = await bench.parts.subject()
    (session,) = await bench.parts.load.run(create_sessions, address=server.address, count=1)
    at = {"address": server.address, "session_id": session}
    await bench.parts.load.run(watch.open_watchers, **at, count=2)
    with pytest.raises(Invalid, match="a turn ended TURN_STATE_COMPLETED"):
        await bench.parts.load.run(watch.talk, **at, message="at once", answer="another", count=1)
    with pytest.raises(Invalid, match="other answers"):
        await bench.parts.load.run(watch.end_watchers, answer="another", count=1)
    return [row("watched", "", [result.per_second for result in results["subject"]], unit="/s")]


@pytest.mark.timeout(120)
async def test_nothing_is_left_of_an_interrupted_bench(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "--only", "turns-1", "--out", str(tmp_path / "bench.json")),
        cwd=program.REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    output = b""
    while b"1 of 1" not in output:
        line = await process.stderr.readline()
        output += line
        assert line, output.decode()
    started = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert (await process.communicate())[1].decode().strip().endswith("every process that it started was stopped")
    assert process.returncode == 130
    assert len(started) >= 3
    assert not [pid for pid in started if alive(pid)]
    assert not os.listdir(tmp_path)  # noqa: PTH208 - it blocks less
