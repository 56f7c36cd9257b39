"""Checks the refusals of busy servers."""

from tests.chaos.history import Finding, History

WITH_RETRY = frozenset({"OVERLOADED", "RATE_LIMIT_EXCEEDED", "SESSION_CONTENDED"})
"""The service's codes after which the same call helps, later."""
EXHAUSTED = frozenset({"RESOURCE_EXHAUSTED", "NOT_RESOURCE_EXHAUSTED"})
"""The status of a refusal, as it is recorded of a call and of a stream."""


def refusals_say_when_to_come_back(history: History) -> Finding:
    """Falsified by a refusal without RetryInfo, or by one that is gRPC's own: nothing of ours then decided it."""
    finding = Finding()
    for call in history.tries:
        status, reason, retry = (call.answer.get(name) for name in ("status", "reason", "retry"))
        name = f"{call.session}: {call.rpc} (call {call.number})"
        finding.expect(status not in EXHAUSTED or bool(reason), f"{name} was refused by gRPC itself")
        finding.expect(reason not in WITH_RETRY or bool(retry), f"{name}: {reason} without RetryInfo")
    return finding
