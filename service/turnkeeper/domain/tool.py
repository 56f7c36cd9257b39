"""Tools: what the operator says of them, what a model is told of them, what they return."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories: controls, formats (bidirectional marks, zero-width), surrogates, private use, separators."""
_SHAPELESS = frozenset(
    chr(number)
    for first, last in (
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # Hangul fillers
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian variation selectors
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),  # variation selectors: 256 of them can carry a hidden text
        (0xFFA0, 0xFFA0),
        (0xE0100, 0xE01EF),
    )
    for number in range(first, last + 1)
)
"""Letters and marks that have no shape of their own: Unicode's Default_Ignorable_Code_Point beyond the categories."""


class ToolClass(StrEnum):
    """What repeating a call may do, from the operator's catalogue, never from the model."""

    READ_ONLY = "READ_ONLY"
    IDEMPOTENT = "IDEMPOTENT"
    IRREVERSIBLE = "IRREVERSIBLE"

    @property
    def may_start_again(self) -> bool:
        """A call with an unknown outcome may start again, under the same key."""
        return self is not ToolClass.IRREVERSIBLE


class ToolOutcome(StrEnum):
    """How a tool call ended. Only OK and FAILED come from the tool itself."""

    OK = "OK"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    INVALID_ARGUMENTS = "INVALID_ARGUMENTS"
    NOT_FOUND = "NOT_FOUND"
    DENIED = "DENIED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


class PolicyAction(StrEnum):
    """What an agent's policy says of a tool call."""

    AUTO = "AUTO"
    NOTIFY = "NOTIFY"
    APPROVE = "APPROVE"
    DENY = "DENY"


class CallState(StrEnum):
    """Where a tool call is.

    AWAITING: a person must decide. READY: it may start. REQUESTED: the client was asked to run it, and may have.
    UNKNOWN: it had started, its owner was lost, and a person is asked what became of it.
    """

    AWAITING = "AWAITING"
    READY = "READY"
    REQUESTED = "REQUESTED"
    STARTED = "STARTED"
    UNKNOWN = "UNKNOWN"
    RETURNED = "RETURNED"


CLIENT = "client"
"""The source of a tool that the caller runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTool:
    """A tool that the caller brings with a message, and runs itself."""

    name: str
    description: str
    schema_json: str

    @property
    def spec(self) -> "ToolSpec":
        """Nobody but the client knows what a call does: it counts as one that cannot be taken back."""
        return ToolSpec(
            name=self.name,
            description=self.description,
            schema_json=self.schema_json,
            tool_class=ToolClass.IRREVERSIBLE,
            source=CLIENT,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool as it is offered to a model.

    `name` matches `[a-zA-Z0-9_-]{1,64}`; `schema_json` is a JSON Schema object; `source` names who runs it.
    """

    name: str
    description: str
    schema_json: str
    tool_class: ToolClass
    source: str

    @property
    def schema_hash(self) -> str:
        return hashlib.sha256(self.schema_json.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What goes back to the model. `result_json` is JSON text, capped by the toolbox."""

    outcome: ToolOutcome
    result_json: str

    @property
    def hash(self) -> str:
        """SHA-256 (hex): equal for two results with one meaning."""
        return hashlib.sha256(f"{self.outcome} {canonical_json(self.result_json)}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call in the ledger.

    `arguments_json` is canonical JSON, or the model's own text where that is not JSON. `arguments_hash` is what an
    approval is bound to. `key` is the idempotency key that every start of this call gives to the tool. `attempt`
    and `fence` are those of the start. `round` counts how often a person was asked about it. `position` orders
    the calls of one model message. `source` names who runs it. `started`: it may have taken effect.
    `shown`: the calls of unknown outcome that whoever was asked about this one saw. `unsettled`: its outcome is
    unknown, and nobody has said what should become of it. `result_hash`, `submitted_by` and `sequence` (of its
    `tool_returned`) are of a result that a client handed in.
    `late_*`: what the tool returned to an owner that had lost the call, and in which attempt that was started; only the
    store writes these.
    """

    id: str
    tenant: str
    session_id: str
    turn_id: str
    message_id: str
    position: int
    tool: str
    arguments_json: str
    arguments_hash: str
    tool_class: ToolClass
    action: PolicyAction
    state: CallState
    key: str
    attempt: int = 0
    fence: int = 0
    outcome: ToolOutcome | None = None
    started: bool = False
    round: int = 0
    shown: tuple[str, ...] = ()
    unsettled: bool = False
    source: str = ""
    result_hash: str = ""
    submitted_by: str = ""
    sequence: int = 0
    late_attempt: int = 0
    late_outcome: ToolOutcome | None = None
    late_result_json: str = ""

    def start(self, *, attempt: int, fence: int) -> "Call":
        if self.state is not CallState.READY:
            raise ValueError(f"a call in state {self.state} cannot start")
        return replace(self, state=CallState.STARTED, attempt=attempt, fence=fence, started=True)

    def requested(self) -> "Call":
        """The client is asked to run it; from here on it may have."""
        return replace(self, state=CallState.REQUESTED, started=True)

    def submitted(self, result: ToolResult, *, by: str, sequence: int) -> "Call":
        """The client's result, to be recorded as event `sequence`. Raises ValueError unless it was asked for."""
        if self.state is not CallState.REQUESTED:
            raise ValueError(f"nobody was asked for the result of a call in state {self.state}")
        return replace(self, result_hash=result.hash, submitted_by=by, sequence=sequence)

    def ready_again(self) -> "Call":
        """Its owner was lost. Raises ValueError unless its class allows another start under the same key."""
        if self.state is not CallState.STARTED or not self.tool_class.may_start_again:
            raise ValueError(f"a {self.tool_class} call in state {self.state} cannot start again")
        return replace(self, state=CallState.READY)

    def lost(self) -> "Call":
        """Its owner was lost, and it must not start again by itself: nobody knows."""
        if self.state is not CallState.STARTED or self.tool_class.may_start_again:
            raise ValueError(f"a {self.tool_class} call in state {self.state} is not lost")
        return replace(self, state=CallState.UNKNOWN, unsettled=True)

    def returned(self, outcome: ToolOutcome) -> "Call":
        if self.state is CallState.RETURNED:
            raise ValueError("a call returns once")
        return replace(self, state=CallState.RETURNED, outcome=outcome)


def canonical_json(text: str) -> str:
    """Sorted keys, no spaces, no NaN, invisible characters as escapes: two texts with one meaning are one text.

    Raises ValueError on anything that is not JSON.
    """

    def refuse(token: str) -> object:
        raise ValueError(f"{token} is not JSON")

    try:
        canonical = json.dumps(
            json.loads(text, parse_constant=refuse),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return "".join(_shown(character) for character in canonical)


def _shown(character: str) -> str:
    """A character that a reader cannot see, or that reorders what they see, becomes its JSON escape."""
    if unicodedata.category(character) not in _HIDDEN and character not in _SHAPELESS:
        return character
    return json.dumps(character)[1:-1]


def model_text(result_json: str) -> str:
    """What the model reads of a result: a JSON string's own text, any other JSON as it is."""
    value = json.loads(result_json)
    return value if isinstance(value, str) else result_json


def approval_hash(spec: ToolSpec, *, arguments_json: str, policy_version: str) -> str:
    """What an approver decides on: server, tool, schema, arguments and policy, in one SHA-256 (hex).

    Equal at proposal, decision and dispatch, or the call does not run (promise I14).
    """
    what = [spec.source, spec.name, spec.schema_hash, canonical_json(arguments_json), policy_version]
    return hashlib.sha256(json.dumps(what, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
