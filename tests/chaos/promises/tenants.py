"""Checks that no tenant sees what is another's: I13."""

from collections.abc import Mapping
from typing import Final

from tests.chaos import tenants
from tests.chaos.calls import AGAIN_REASONS
from tests.chaos.history import Finding, History, Try
from tests.chaos.spies import ABSENT, EMPTY, REFUSED

EXPECTED: Final[Mapping[str, frozenset[str]]] = {
    ABSENT: frozenset({"NOT_FOUND"}),
    REFUSED: frozenset({"NOT_FOUND", "INVALID_ARGUMENT"}),
    EMPTY: frozenset({"OK"}),
}
"""The statuses of answers to a probe for what is another tenant's."""
_UNANSWERED: Final = frozenset({"", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED", "CUT"})
"""Statuses that do not answer a probe, without a reason of the service's."""


def i13_no_tenant_sees_another(history: History) -> Finding:
    """Falsified by a probe for what is another tenant's that is not answered as one for what is absent, or by
    a text of another tenant: in any answer or stream, in a stored log, in a request to the model.
    """
    finding = Finding()
    for call in history.tries:
        name = f"{call.session}: {call.rpc} (call {call.number})"
        if call.answer:
            finding.expect(not call.answer.get("leaked"), f"{name} was answered with a text of another tenant")
        if was_answered(call):
            status, expected = call.answer["status"], EXPECTED[call.request["foreign"]]
            finding.expect(status in expected, f"{name} named what is another tenant's, and got {status}")
    for chain in history.chains:
        leaked = f"{chain.session}: reader {chain.number} was given a text of another tenant"
        finding.expect(not chain.leaked, leaked)
    for session, log in history.logs.items():
        for event in log:
            foreign = tenants.is_foreign(event.event.SerializeToString(), tenants.tenant_of(session))
            finding.expect(not foreign, f"{session}: event {event.sequence} has a text of another tenant")
    for prompt in history.prompts:
        texts = " ".join(str(message) for message in prompt.messages)
        whose = [tenant for tenant in tenants.TENANTS if tenants.label(tenant, "") in texts]
        finding.expect(len(whose) <= 1, f"the model was given texts of {' and '.join(whose)}: {texts[:60]}")
    return finding


def was_answered(call: Try) -> bool:
    """Returns True if the call named what is another tenant's, and the service has answered."""
    reason, status = call.answer.get("reason", ""), call.answer.get("status", "")
    if "foreign" not in call.request:
        return False
    return reason not in AGAIN_REASONS if reason else status not in _UNANSWERED


def foreign_reads(history: History) -> Mapping[str, int]:
    """Returns the number of probes for what is another tenant's: tried, answered, and those that leaked something."""
    probes = [call for call in history.tries if "foreign" in call.request]
    answered = [call for call in probes if was_answered(call)]
    leaked = [
        call
        for call in answered
        if call.answer.get("leaked") or call.answer["status"] not in EXPECTED[call.request["foreign"]]
    ]
    return {"tried": len(probes), "answered": len(answered), "leaked": len(leaked)}
