"""The report of a run on a terminal."""

from tests.mesh.findings import Fault, Findings
from tests.mesh.report import WIDTH, table
from tests.mesh.stage import Open


def findings() -> Findings:
    result = Findings(figures={"latency": {"added_p50_ms": 1.25, "added_p99_ms": 12.5}})
    result.faults.append(
        Fault(kind="accepts and never answers", replica="replica-3", began=0, open=Open(123, 45), out=14.21)
    )
    result.expect("unary calls that failed", "0 of 12,345", held=True)
    result.complaints.append("GetSession: " + "a long reason " * 60)
    return result


def test_it_fits_80_columns() -> None:
    result = findings()
    result.expect("a promise with very many words, more than fit in its column", "1,234 in 5,678 probes", held=False)
    assert max(map(len, table(result).splitlines())) <= WIDTH


def test_it_holds_while_every_promise_does() -> None:
    assert findings().held
    assert "BROKEN" not in table(findings())


def test_one_broken_promise_is_shown_and_breaks_the_run() -> None:
    result = findings()
    result.expect("ejections by answers", 4, held=False)
    assert not result.held
    assert "BROKEN" in table(result)


def test_a_run_without_a_promise_does_not_hold() -> None:
    assert not Findings().held
