"""Logs the steps of turns at level DEBUG: each event as it is stored, and each decision of a policy with its reason.

The lines have names, numbers and outcomes, and no content: neither text of messages nor arguments nor results.
"""

import logging
from collections.abc import Iterable
from typing import Final

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import Payload, UnknownPayload, name_of
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import CLIENT, PolicyAction
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Changeset, Committed
from turnkeeper.tools.toolbox import CheckedRequest

_SHOWN: Final = ("tool", "tool_class", "action", "outcome", "approval_id", "decision", "model", "finish_reason")
"""The fields of events that are logged; none of them holds content."""
logger = logging.getLogger(__name__)


def log_steps(changeset: Changeset, committed: Committed) -> None:
    """Logs a line for each event of a stored changeset."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    first = committed.last_seq - len(changeset.events) + 1
    for sequence, event in enumerate(changeset.events, first):
        about = {"session": changeset.session_id, "turn": event.turn_id, "attempt": event.attempt, "sequence": sequence}
        logger.debug("%s", " ".join(filter(None, (name_of(event.payload), _details(event.payload)))), extra=about)


def log_policy(agent: Agent, checked: Iterable[CheckedRequest], *, turn: Turn) -> None:
    """Logs what the agent's policy decides on each requested call, and which of its rules decided."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    for request in checked:
        spec = request.spec
        if spec is None:
            decision = "there is no such tool"
        elif request.problem:
            decision = "its arguments do not fit"
        elif spec.source == CLIENT:
            decision = "the client runs it"
        else:
            ruling = request.ruling or Ruling(action=PolicyAction.DENY)
            decision = f"{ruling.action}: {f'rule {ruling.rule}: ' if ruling.rule else ''}{ruling.rule_text}"
        logger.debug(
            "policy of %s on %.64s: %s",
            *(agent.name, request.request.tool, decision),
            extra={"session": turn.session_id, "turn": turn.id, "attempt": turn.attempt},
        )


def _details(payload: Payload | UnknownPayload) -> str:
    """Returns what a reader of the log needs of a payload."""
    words = [f"{value:.64}" for name in _SHOWN if (value := getattr(payload, name, ""))]
    if (error := getattr(payload, "error", None)) is not None:
        words += [error.code.name, error.metadata.get("reason", "")]
    if (duration := getattr(payload, "duration", None)) is not None:
        words.append(f"after {duration.total_seconds():.3f} s")
    return " ".join(filter(None, words))
