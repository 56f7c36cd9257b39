"""A policy: rules that decide what happens to a tool call. The first rule that covers a tool counts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Final

from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.tool import DECIDE_TIME, Call, PolicyAction, ToolClass, ToolSpec

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
"""Seconds of each unit of a duration in a rule's text."""
TOOL_ASKS: Final = "the tool asks itself"
"""Why a call asks though its rule lets it run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A line of an agent's policy: which tools it covers, and what happens to a call of one."""

    tool: str
    """A tool's name, or a pattern with `*` and `?`."""
    action: PolicyAction
    ttl: timedelta = DECIDE_TIME
    """How long an approval that this rule asks for can be decided."""
    name: str = ""
    """What events and approvals call the rule; empty: its `tool`."""
    note: str = ""
    """For the people who decide. An approval's hash does not cover it."""
    approvers: Approvers = ANYBODY
    """Who may decide an approval that this rule asks for."""
    tool_class: ToolClass | None = None
    """The class of the tools that it covers; None: any."""
    when: str = ""
    """A condition in CEL; empty: always. See `policy.expression`."""
    even_untrusted: bool = False
    """True: an IRREVERSIBLE call that it lets run also runs where the model has read an untrusted tool's result."""
    shadow: bool = False
    """True: events record what it would have done, and it decides nothing."""

    def covers(self, spec: ToolSpec) -> bool:
        """Returns True if the rule is about the tool, whatever its condition."""
        return fnmatchcase(spec.name, self.tool) and self.tool_class in (None, spec.tool_class)

    @property
    def ruling(self) -> "Ruling":
        """Returns what the rule decides where it applies."""
        return Ruling(
            action=self.action,
            rule=self.title,
            rule_text=self.text,
            approvers=self.approvers,
            ttl=self.ttl,
            note=self.note,
        )

    @property
    def title(self) -> str:
        """Returns what events and approvals call the rule."""
        return self.name or self.tool

    @property
    def text(self) -> str:
        """Returns the rule in one line, without its name and its note: equal for rules that decide equally."""
        return ", ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        yield f"tool = {_quoted(self.tool)}"
        if self.tool_class is not None:
            yield f"class = {_quoted(self.tool_class.value.lower())}"
        if self.when:
            yield f"when = {_quoted(self.when)}"
        yield f"action = {_quoted(self.action.value.lower())}"
        if self.even_untrusted:
            yield "even_untrusted = true"
        if self.action is not PolicyAction.DENY:
            yield f'ttl = "{_short(self.ttl)}"'
            yield from _approvers_parts(self.approvers)


def _approvers_parts(approvers: Approvers) -> Iterator[str]:
    """Yields what differs from the default."""
    if approvers.groups:
        yield f"groups = {_listed(approvers.groups)}"
    if approvers.principals:
        yield f"principals = {_listed(approvers.principals)}"
    if approvers.k != 1:
        yield f"k = {approvers.k}"
    if not approvers.veto:
        yield f"veto = false, reject_at = {approvers.reject_at or approvers.k}"
    if not approvers.exclude_requester:
        yield "exclude_requester = false"
    if approvers.direct:
        yield "direct = true"
    if not approvers.remember:
        yield "remember = false"


def _short(duration: timedelta) -> str:
    """Returns the duration as people write it, in the largest unit that has no fraction."""
    seconds = duration.total_seconds()
    unit = next((unit for unit in _UNITS if seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:.12g}{unit}"


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(_quoted(name) for name in sorted(names))}]"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRuling:
    """What a shadow rule would have done with a call."""

    rule: str
    """What the rule is called."""
    action: PolicyAction
    error: str = ""
    """The kind of the error that its condition ended with; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a policy decides on one tool call."""

    action: PolicyAction
    rule: str = ""
    """What the rule that decided is called; empty if no rule covers the call and the tool's class decided."""
    rule_text: str = ""
    """The rule in one line; without a rule, why the call is decided like that."""
    approvers: Approvers = ANYBODY
    ttl: timedelta = DECIDE_TIME
    """How long an approval can be decided."""
    note: str = ""
    """For the people who decide."""
    error: str = ""
    """The kind of the error that the rule's condition ended with; empty without one."""
    shadows: tuple[ShadowRuling, ...] = ()
    """What shadow rules would have done, of those before the rule that decided."""

    @property
    def runs(self) -> bool:
        """Returns True if the call may run without a person's decision."""
        return self.action in (PolicyAction.AUTO, PolicyAction.NOTIFY)

    def asking(self, why: str = "") -> "Ruling":
        """Returns the ruling with a person's decision before the call runs, and the reason. A denial stays one."""
        if not self.runs:
            return self
        return replace(
            self, action=PolicyAction.APPROVE, rule_text=f"{self.rule_text}; {why}" if why else self.rule_text
        )


def usual_ruling(policy: tuple[PolicyRule, ...], spec: ToolSpec) -> Ruling:
    """Returns what the policy decides on a call of the tool if no rule with a condition applies first.

    Without a rule, READ_ONLY tools run, others need approval. A tool that asks itself is never let through.
    """
    rule = next((rule for rule in policy if rule.covers(spec) and not (rule.when or rule.shadow)), None)
    ruling = class_ruling(spec) if rule is None else rule.ruling
    return ruling.asking(TOOL_ASKS) if spec.asks else ruling


def class_ruling(spec: ToolSpec) -> Ruling:
    """Returns what is decided on a call that no rule covers: READ_ONLY tools run, others need approval."""
    free = spec.tool_class is ToolClass.READ_ONLY
    return Ruling(
        action=PolicyAction.AUTO if free else PolicyAction.APPROVE,
        rule_text=f"no rule covers the call, and it is {spec.tool_class}",
    )


def ruling_of(call: Call) -> Ruling:
    """Returns the ruling that a call carries: what the policy decided on it last."""
    return Ruling(
        action=call.action,
        rule=call.rule,
        rule_text=call.rule_text,
        approvers=call.approvers,
        ttl=call.ttl,
        note=call.note,
    )


def with_ruling(call: Call, ruling: Ruling) -> Call:
    """Returns the call with what the policy decided on it."""
    return replace(
        call,
        action=ruling.action,
        rule=ruling.rule,
        rule_text=ruling.rule_text,
        approvers=ruling.approvers,
        ttl=ruling.ttl,
        note=ruling.note,
    )
