"""How the probes of spies are counted."""

from tests.chaos.promises.tenants import foreign_reads, i13_no_tenant_sees_another
from tests.chaos.spies import ABSENT
from tests.unit.chaos.leaks import a_foreign_session_is_found
from tests.unit.chaos.runs import clean


def test_foreign_reads_are_counted_and_those_without_an_answer_leak_nothing() -> None:
    run = clean()
    foreign = {"foreign": ABSENT}
    run.tried("GetSession", foreign, status="NOT_FOUND", reason="SESSION_NOT_FOUND")
    run.tried("GetTurn", foreign, status="UNAVAILABLE")
    run.tried("GetTurn", foreign, status="RESOURCE_EXHAUSTED", reason="OVERLOADED", retry=700)
    assert not i13_no_tenant_sees_another(run.history()).violations
    assert foreign_reads(run.history()) == {"tried": 3, "answered": 1, "leaked": 0}
    a_foreign_session_is_found(run)
    assert foreign_reads(run.history()) == {"tried": 4, "answered": 2, "leaked": 1}
