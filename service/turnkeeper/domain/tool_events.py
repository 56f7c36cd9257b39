"""The events of a tool call: requested, started, reconciled, returned. `event.py` has the table of all."""

from dataclasses import dataclass
from datetime import timedelta

from turnkeeper.domain.policy import ShadowRuling
from turnkeeper.domain.tool import PolicyAction, ReconciledState, ToolClass, ToolOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalled:
    """The model requested a tool, and the agent's policy decided what happens to the call."""

    tool_call_id: str
    tool: str
    arguments_json: str
    """Canonical JSON, or the model's own text if that is not JSON."""
    arguments_hash: str
    """Hexadecimal: what an approval is bound to."""
    action: PolicyAction
    tool_class: ToolClass
    message_id: str
    """The model's message that requested it."""
    rule: str = ""
    """What the rule that decided is called; see `Ruling`."""
    policy_error: str = ""
    """The kind of the error that the rule's condition ended with; empty without one."""
    shadows: tuple[ShadowRuling, ...] = ()
    """What shadow rules would have done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    """The tool is about to run; stored before the call leaves the replica."""

    tool_call_id: str
    tool: str
    key: str
    """The idempotency key that the tool receives, the same for every start of this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReconciled:
    """The tool's server told what became of a call whose result is missing, or did not tell it."""

    tool_call_id: str
    tool: str
    attempt: int
    """The attempt that had started the call."""
    state: ReconciledState
    took_effect: bool = False
    """Of a FAILED call: it took effect, at least in part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReturned:
    """A tool call ended, with or without a result of the tool."""

    tool_call_id: str
    tool: str
    outcome: ToolOutcome
    result_json: str
    """JSON text for the model, at most 64 KiB."""
    started: bool
    """A start of the call was stored, or the client was requested to run it: it may have taken effect."""
    duration: timedelta | None = None
    """From start to result; None if it did not run."""
    submitted_by: str = ""
    """The principal that submitted the result of a client's tool; empty otherwise."""
    submitted_through: str = ""
    """The delegate that submitted it on behalf of the principal; empty without one."""
    trusted: bool = False
    """True: the result cannot mislead the model, because its tool is trusted, or the service wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientToolRequested:
    """The client must run a tool and submit its result."""

    tool_call_id: str
    tool: str
    arguments_json: str
