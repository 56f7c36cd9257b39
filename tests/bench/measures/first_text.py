"""Measures the time to the first text above the model's own, at the pace of a fast real model."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from tests.bench.bench import Bench, Measure, Round, answer_to
from tests.bench.figures import Row, row
from tests.bench.jobs.model import call_model
from tests.chaos.figures import quantile

MESSAGE = "paced"
CONCURRENCY = 16
TURN_SECONDS = 0.05 + 31 * 0.02
"""Seconds that the model takes for an answer at that pace."""


async def first_text(bench: Bench) -> list[Row]:
    """Runs subject, F2 and F1 by turns; callers begin at random times within an answer's length."""
    servers = {"subject": await bench.parts.subject(), "F2": await bench.parts.floor("relay")}
    paced: dict[str, Any] = {"message": MESSAGE, "concurrency": CONCURRENCY, "apart": TURN_SECONDS}
    sides = {name: partial(bench.turns, server, **paced) for name, server in servers.items()}
    results = await bench.alternate({**sides, "F1": partial(_model, bench)})
    return rows_of(results["subject"], results["F2"], results["F1"])


async def _model(bench: Bench) -> Round:
    done = await bench.parts.load.run(
        call_model,
        url=bench.parts.model_url,
        message=MESSAGE,
        answer=answer_to(MESSAGE),
        count=bench.scale.turns,
        concurrency=CONCURRENCY,
        apart=TURN_SECONDS,
    )
    return Round(first_text_ms=done["first_text_ms"])


def rows_of(subject: Sequence[Round], relay: Sequence[Round], model: Sequence[Round]) -> list[Row]:
    """Returns the rows. Percentiles are of each round, above the median of F1; the model's own tail is kept."""
    own = statistics.median(at for result in model for at in result.first_text_ms)
    about = "to the first text above the model's own, 16 concurrent"
    rows = [
        row(f"first_text.p{share}", f"p{share} {about}", _above(subject, share, own), unit="ms") for share in (50, 99)
    ]
    rows += [
        row(f"F2.first_text.p{share}", f"F2: p{share} {about}", _above(relay, share, own), unit="ms")
        for share in (50, 99)
    ]
    rows.append(row("F1.first_text", "F1: the model's own", [own], unit="ms"))
    rows.append(
        row(
            "turn.cpu.paced",
            "server CPU per turn, chunks 20 ms apart, 16 concurrent; floor F2",
            [result.server_ms for result in subject],
            unit="ms",
            floor=[result.server_ms for result in relay],
        )
    )
    rows.append(row("turn.responses.paced", "responses a turn", [result.responses for result in subject], unit=""))
    return rows


def _above(rounds: Sequence[Round], share: int, own: float) -> list[float]:
    return [(quantile(result.first_text_ms, share / 100) or 0.0) - own for result in rounds]


MEASURES = (Measure("first-text", "time to the first text, and the CPU of paced turns", first_text),)
