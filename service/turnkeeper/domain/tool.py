"""Tools and their calls: how a tool is described, what a call's states are, what it returns."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from turnkeeper.domain import json_text
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.session import BelongsToSession

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories of hidden characters: controls, formats (bidirectional, zero-width), surrogates, separators …"""
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
"""Invisible letters and marks: Unicode's Default_Ignorable_Code_Point beyond the categories in _HIDDEN."""


class ToolClass(StrEnum):
    """What a repeated call may do. The operator states it, never the model.

    READ_ONLY changes nothing. IDEMPOTENT: a second start under the same key has no further effect. IRREVERSIBLE: a call
    is started at most once. FORBIDDEN: the tool is never offered, nor run.
    """

    READ_ONLY = "READ_ONLY"
    IDEMPOTENT = "IDEMPOTENT"
    IRREVERSIBLE = "IRREVERSIBLE"
    FORBIDDEN = "FORBIDDEN"

    @property
    def may_start_again(self) -> bool:
        """Returns True if a call with an unknown outcome may start again under the same key."""
        return self in (ToolClass.READ_ONLY, ToolClass.IDEMPOTENT)


class ToolOutcome(StrEnum):
    """How a tool call ended.

    OK and FAILED come from the tool. TIMED_OUT and CANCELLED may have taken effect. UNKNOWN: an IRREVERSIBLE call whose
    owner was lost while it ran, or that did not finish in time. With any other outcome the tool did not run.
    """

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


UNTOLD: Final = (ToolOutcome.TIMED_OUT, ToolOutcome.UNKNOWN)
"""Outcomes that do not tell whether the tool took effect."""


class ReconciledState(StrEnum):
    """What the server of a tool told of a call that had started and whose result is missing.

    NOT_STARTED is a promise: that start can have no effect any more, so that the call may start again, whatever its
    class. UNKNOWN: the server cannot tell. NO_ANSWER: none came in time, or the server has no answers of this kind.
    """

    NOT_STARTED = "NOT_STARTED"
    DONE = "DONE"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    NO_ANSWER = "NO_ANSWER"


class PolicyAction(StrEnum):
    """What an agent's policy does with a tool call: run it, run it with a notice, ask a person, deny it."""

    AUTO = "AUTO"
    NOTIFY = "NOTIFY"
    APPROVE = "APPROVE"
    DENY = "DENY"


class CallState(StrEnum):
    """The state of a tool call.

    AWAITING: a person must decide. READY: it may start. REQUESTED: the client must run it, and may have run it.
    STARTED: a tool of the service runs it. UNKNOWN: its owner was lost after the start, or its time was over, and a
    person must decide on its outcome. RETURNED: it has an outcome; final.
    """

    AWAITING = "AWAITING"
    READY = "READY"
    REQUESTED = "REQUESTED"
    STARTED = "STARTED"
    UNKNOWN = "UNKNOWN"
    RETURNED = "RETURNED"


DECIDE_TIME = timedelta(hours=1)
"""How long an approval can be decided, where no rule sets another time."""
MODEL_WORDS = 2_000
"""Characters of what the model wrote with a call that are shown to the people who decide."""
CLIENT = "client"
"""The `source` of a tool that the client runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTool:
    """A tool that a client declares with a message and runs itself."""

    name: str
    description: str
    schema_json: str
    """A JSON Schema object."""

    @property
    def spec(self) -> "ToolSpec":
        """Returns the tool as a model sees it. It counts as IRREVERSIBLE: only the client knows what a call does."""
        return ToolSpec(
            name=self.name,
            description=self.description,
            schema_json=self.schema_json,
            tool_class=ToolClass.IRREVERSIBLE,
            source=CLIENT,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool as it is offered to a model."""

    name: str
    """Matches `[a-zA-Z0-9_-]{1,64}`."""
    description: str
    schema_json: str
    """A JSON Schema object."""
    tool_class: ToolClass
    source: str
    """Who runs it: CLIENT, or the name of a source of tools."""
    asks: bool = False
    """True if a person decides on each call, also where an agent's policy would let it run."""
    timeout: timedelta | None = None
    """How long a call may run at most; None leaves it to the agent's `tool_timeout`, which may also be shorter."""

    trusted_output: bool = False
    """True: what the tool returns cannot mislead the model, such as the operator's own records."""
    foreign_name: str = ""
    """What the tool's own server calls it, if `name` had to be mapped; empty otherwise."""

    @property
    def schema_hash(self) -> str:
        """Returns the SHA-256 (hexadecimal) of `schema_json`."""
        return _sha256(self.schema_json)

    @property
    def description_hash(self) -> str:
        """Returns the SHA-256 (hexadecimal) of `description`."""
        return _sha256(self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What the model receives for a tool call."""

    outcome: ToolOutcome
    result_json: str
    """JSON text; the toolbox limits its size."""

    @property
    def hash(self) -> str:
        """Returns a SHA-256 (hexadecimal) that is equal for two results with equal meaning.

        Raises ValueError as `canonical_json`; a result that was checked raises none.
        """
        return hashlib.sha256(f"{self.outcome} {canonical_json(self.result_json)}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(BelongsToSession):
    """One tool call as it is stored."""

    id: str
    tenant: str
    session_id: str
    turn_id: str
    message_id: str
    """The model's message that requested it."""
    position: int
    """Its place among the calls of that message, from 0."""
    tool: str
    arguments_json: str
    """Canonical JSON, or the model's own text if that is not JSON."""
    arguments_hash: str
    """The hash of everything that a decision rests on; see `decision_hash`."""
    tool_class: ToolClass
    action: PolicyAction
    state: CallState
    key: str
    """The idempotency key that the tool receives, the same for every start of this call."""
    attempt: int = 0
    """The turn's attempt that started it; 0 before."""
    fence: int = 0
    """The fence of the owner that started it; 0 before."""
    start_time: datetime | None = None
    """When that start was decided on, by the owner's clock; None before, and if an older version started it."""
    idle_starts: int = 0
    """How many of its starts were proven to have had no effect."""
    approval_id: str = ""
    """The approval that was requested for it last; empty without one."""
    outcome: ToolOutcome | None = None
    """None before it is RETURNED."""
    started: bool = False
    """True if it was started or requested: it may have taken effect."""
    starts: int = 0
    """How many starts of it were stored."""
    round: int = 0
    """How many approvals were requested for it."""
    shown: tuple[str, ...] = ()
    """Calls of unknown outcome that its last approval showed to the decider."""
    unsettled: bool = False
    """True while its outcome is unknown and no person has decided on it."""
    source: str = ""
    """Who runs it; see `ToolSpec.source`."""
    result_hash: str = ""
    """`ToolResult.hash` of the result that the client submitted; empty before."""
    submitted_by: str = ""
    """The principal that submitted the result; empty before."""
    submitted_through: str = ""
    """The delegate that submitted it on behalf of the principal; empty without one."""
    sequence: int = 0
    """The number of the `tool_returned` event of the submitted result; 0 before."""
    rule: str = ""
    """What the rule is called that the policy decided by last; see `Ruling`, as for the four fields below."""
    rule_text: str = ""
    approvers: Approvers = ANYBODY
    ttl: timedelta = DECIDE_TIME
    note: str = ""
    binding: str = ""
    """What a remembered decision on this call is bound to, but for the arguments; empty if the call did not ask."""
    schema_hash: str = ""
    """`ToolSpec.schema_hash`, and below `ToolSpec.description_hash`, of the tool that was decided on last."""
    description_hash: str = ""
    model_words: str = ""
    """What the model wrote with the call: its first MODEL_WORDS characters."""
    untrusted: bool = False
    """True if the model had read what an untrusted tool returned when it requested the call."""
    trusted_output: bool = False
    """`ToolSpec.trusted_output` of its tool."""
    late_attempt: int = 0
    """The attempt that started the call and whose result came too late. Only the store writes `late_*`."""
    late_outcome: ToolOutcome | None = None
    late_result_json: str = ""

    @property
    def is_open(self) -> bool:
        """Returns True if a decision may still depend on the call: it has no result, or its outcome is in question."""
        return self.state is not CallState.RETURNED or self.unsettled

    @property
    def late_result(self) -> ToolResult | None:
        """Returns what the tool returned, if that came too late for the owner that started the call last.

        Returns None if nothing came, or what came does not tell whether the tool took effect.
        """
        if self.late_attempt != self.attempt or self.late_outcome not in (ToolOutcome.OK, ToolOutcome.FAILED):
            return None
        return ToolResult(outcome=self.late_outcome, result_json=self.late_result_json)

    def start(self, *, attempt: int, fence: int, at: datetime) -> "Call":
        """Returns the call as STARTED. Raises ValueError unless it is READY."""
        if self.state is not CallState.READY:
            raise ValueError(f"a call in state {self.state} cannot start")
        return replace(
            self,
            state=CallState.STARTED,
            attempt=attempt,
            fence=fence,
            started=True,
            start_time=at,
            starts=self.starts + 1,
        )

    def requested(self) -> "Call":
        """Returns the call as REQUESTED: from here on the client may have run it."""
        return replace(self, state=CallState.REQUESTED, started=True)

    def submitted(self, result: ToolResult, *, by: str, through: str = "", sequence: int) -> "Call":
        """Returns the call with the client's result, which is event `sequence`. Raises ValueError unless REQUESTED."""
        if self.state is not CallState.REQUESTED:
            raise ValueError(f"no client was requested to run a call in state {self.state}")
        return replace(self, result_hash=result.hash, submitted_by=by, submitted_through=through, sequence=sequence)

    def ready_again(self) -> "Call":
        """Returns the call as READY after its owner was lost, or its try has failed.

        Raises ValueError if its class forbids another start.
        """
        if self.state is not CallState.STARTED or not self.tool_class.may_start_again:
            raise ValueError(f"a {self.tool_class} call in state {self.state} cannot start again")
        return replace(self, state=CallState.READY)

    def never_started(self) -> "Call":
        """Returns the call as READY after its start was proven to have no effect. Raises ValueError unless STARTED."""
        if self.state is not CallState.STARTED:
            raise ValueError(f"a call in state {self.state} has no start without an effect")
        return replace(self, state=CallState.READY, idle_starts=self.idle_starts + 1)

    def lost(self) -> "Call":
        """Returns the call as UNKNOWN: its owner was lost, or its time is over.

        Raises ValueError if its class allows another start.
        """
        if self.state is not CallState.STARTED or self.tool_class.may_start_again:
            raise ValueError(f"a {self.tool_class} call in state {self.state} is not lost")
        return replace(self, state=CallState.UNKNOWN, unsettled=True)

    def returned(self, outcome: ToolOutcome) -> "Call":
        """Returns the call as RETURNED. Raises ValueError if it has returned before."""
        if self.state is CallState.RETURNED:
            raise ValueError("the call has returned before")
        return replace(self, state=CallState.RETURNED, outcome=outcome)


def canonical_json(text: str) -> str:
    """Returns the JSON with sorted keys, without spaces, with invisible characters escaped: equal for equal meaning.

    Raises ValueError as `json_text.exact_value`.
    """
    canonical = json.dumps(
        json_text.exact_value(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    hidden = {ord(character): json.dumps(character)[1:-1] for character in set(canonical) if _is_hidden(character)}
    return canonical.translate(hidden) if hidden else canonical


def _is_hidden(character: str) -> bool:
    """Returns True if a character is invisible or reorders the text around it."""
    return unicodedata.category(character) in _HIDDEN or character in _SHAPELESS


def model_text(result_json: str) -> str:
    """Returns the text of a result as the model reads it: that of a JSON string, any other text as it is."""
    if not result_json.lstrip().startswith('"'):
        return result_json  # unread: a stored result may be nested deeper than any reader goes
    try:
        value = json.loads(result_json)
    except ValueError:
        return result_json
    return value if isinstance(value, str) else result_json


def decision_hash(call: Call) -> str:
    """Returns one SHA-256 (hexadecimal) of everything about the call that an approval shows, but a late result.

    That is source, tool, schema, description, class, arguments, the rule's name and text, the model's own words, the
    calls of unknown outcome, and whether the model had read what an untrusted tool returned. The call runs only if it
    is equal at proposal, decision and start (promise I14).
    """
    shown = [
        *(call.source, call.tool, call.schema_hash, call.description_hash, call.tool_class.value, call.arguments_json),
        *(call.rule, call.rule_text, call.model_words, list(call.shown), call.untrusted),
    ]
    return _sha256(json.dumps(shown, ensure_ascii=False, separators=(",", ":")))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
