"""Folds what happens to the time to decide an approval, and reads it from the stored one."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tests.checker.values import BrokenLog, FoldedApproval
from turnkeeper.pb.v1 import event_pb2


def announce(approval: FoldedApproval, event: event_pb2.Event) -> None:
    """Takes that the approval will expire soon. Raises BrokenLog if that was announced before."""
    if approval.is_expiring:
        raise BrokenLog(f"approval {event.approval_expiring.approval_id} was announced twice ({event.sequence})")
    approval.is_expiring = True


def extend(approval: FoldedApproval, event: event_pb2.Event) -> None:
    """Takes that there is more time to decide the approval."""
    approval.whole_ttl, approval.extension_sequence = event.approval_extended.ttl.ToTimedelta(), event.sequence


def with_times(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a stored approval with what the log has of its time to decide. An older version has no such fields."""
    whole = timedelta(milliseconds=document.get("ttl", 0) + document.get("extended", 0))
    times = {"extension_sequence": 0, "is_expiring": False}
    return {**times, **document, "whole_ttl": whole if document.get("extension_sequence") else None}
