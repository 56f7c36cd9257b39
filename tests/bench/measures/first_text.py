"""The time to the first text, above what the model itself takes, at the pace of a quick real model."""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from tests.bench.bench import Bench, Measure, Round, answer_to
from tests.bench.figures import Row, row
from tests.bench.jobs.model import ask_model
from tests.chaos.figures import quantile

MESSAGE = "paced"
CONCURRENCY = 16
TURN_SECONDS = 0.05 + 31 * 0.02
"""What the model takes for an answer at that pace."""


async def first_text(bench: Bench) -> list[Row]:
    """Subject, F2 and F1 in turns; callers begin at random times within an answer's length."""
    servers = {"subject": await bench.parts.subject(), "F2": await bench.parts.floor("relay")}
    paced: dict[str, Any] = {"message": MESSAGE, "concurrency": CONCURRENCY, "apart": TURN_SECONDS}
    sides = {name: partial(bench.turns, server, **paced) for name, server in servers.items()}
    found = await bench.alternate({**sides, "F1": partial(_model, bench)})
    return rows_of(found["subject"], found["F2"], found["F1"])


async def _model(bench: Bench) -> Round:
    done = await bench.parts.load.run(
        ask_model,
        url=bench.parts.model_url,
        message=MESSAGE,
        answer=answer_to(MESSAGE),
        count=bench.scale.turns,
        concurrency=CONCURRENCY,
        apart=TURN_SECONDS,
    )
    return Round(first_text_ms=done["first_text_ms"])


def rows_of(subject: Sequence[Round], relay: Sequence[Round], model: Sequence[Round]) -> list[Row]:
    """Percentiles are of each round, and stand above the median of all that F1 took: its own tail is not forgiven."""
    own = statistics.median(at for each in model for at in each.first_text_ms)
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
            [each.server_ms for each in subject],
            unit="ms",
            floor=[each.server_ms for each in relay],
        )
    )
    rows.append(row("turn.responses.paced", "responses a turn", [each.responses for each in subject], unit=""))
    return rows


def _above(rounds: Sequence[Round], share: int, own: float) -> list[float]:
    return [(quantile(each.first_text_ms, share / 100) or 0.0) - own for each in rounds]


MEASURES = (Measure("first-text", "time to the first text, and the CPU of paced turns", first_text),)
