"""docs/reference/telemetry.md names every instrument and every span, with exactly their labels and attributes."""

import re
from pathlib import Path

from tests.unit.telemetry.calls import Meters, Traces, arguments, kind, methods, points
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.open_spans import OpenSpan
from turnkeeper.telemetry.spans import Spans

PAGE = Path(__file__).parents[3] / "docs/reference/telemetry.md"


def rows(section: str) -> list[list[str]]:
    """The cells of the section's table."""
    text = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def recorded() -> dict[str, tuple[str, str, set[str]]]:
    """Name → kind, unit, labels, after each method of Metrics was called once with everything it takes."""
    meters = Meters()
    for name, method in methods(Metrics):
        # INTERNAL is a server's fault, so that labels of failures show, too.
        getattr(meters.metrics, name)(**arguments(method, text=lambda _: "INTERNAL"))
    return {
        name: (kind(metric), metric.unit or "", {key for point in points(metric) for key in point.attributes or {}})
        for name, metric in meters.read().items()
    }


def test_every_instrument_has_its_row_and_every_row_its_instrument() -> None:
    documented = {
        quoted(name).pop(): (kind_, quoted(unit).pop(), quoted(labels))
        for name, kind_, unit, labels, _ in rows("Metrics")
    }
    assert documented == recorded()


def test_every_span_has_its_row_and_every_row_its_span() -> None:
    traces = Traces(record_content=True)
    for name, opener in methods(Spans):
        if name not in {"traceparent", "call_concerns"}:
            given = arguments(opener, text=lambda name: f"{{{name}}}")
            with getattr(traces.spans, name)(**given) as live:
                ends = dict(methods(type(live)))
            for end, method in ends.items():
                with getattr(traces.spans, name)(**given) as live:
                    assert isinstance(live, OpenSpan)
                    getattr(live, end)(**arguments(method, text=lambda name: f"{{{name}}}"))
    spans: dict[str, tuple[str, set[str]]] = {}
    for span in traces.exporter.get_finished_spans():
        _, attributes = spans.setdefault(span.name, (span.kind.name.lower(), set()))
        attributes.update(span.attributes or {})
    documented = {quoted(name).pop(): (kind_, quoted(attributes)) for name, kind_, attributes in rows("Spans")}
    assert documented == spans
