"""What a policy decides on a tool call: names first, then conditions, until a rule applies."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import TOOL_ASKS, PolicyRule, Ruling, ShadowRuling, class_ruling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.policy import cel_extension as cel
from turnkeeper.policy.expression import BadExpression, Condition, Cost, compiled, context, total

MAX_NODES: Final = 2_000
"""Values of the arguments that conditions are evaluated on; a call with more is not read."""
MAX_STEPS: Final = 8_000
"""Steps of all conditions of one call, about 4 ms; where they do not suffice, the call is not read further."""
_MAX_KNOWN: Final = 1_024
"""Tools whose rules a policy remembers."""
TOO_LARGE: Final = "too_large"
NOT_BOOLEAN: Final = "not_boolean"
UNTRUSTED: Final = "the model has read what an untrusted tool returned"
_KINDS: Final[Mapping[type[BaseException], str]] = {
    KeyError: "missing",
    IndexError: "missing",
    TypeError: "wrong_type",
    ArithmeticError: "arithmetic",
    ValueError: "unreadable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """What a policy knows of a tool call."""

    spec: ToolSpec
    arguments_json: str
    """Canonical JSON."""
    tenant: str
    principal: str
    """Who sent the message that led to the call."""
    labels: Mapping[str, str]
    """The session's."""
    untrusted: bool
    """True if the model has read what an untrusted tool returned."""


class _Placed(NamedTuple):
    """A rule with its condition, and its place among the rules of its policy."""

    place: int
    rule: PolicyRule
    condition: Condition | None


class _ConditionReader:
    """Evaluates the conditions of one call in one context, which is built when the first of them is read."""

    def __init__(self, facts: CallFacts, cost: Cost, groups: Callable[[], frozenset[str]]) -> None:
        """`cost` is that of all conditions that may be read."""
        self._facts = facts
        self._cost = cost
        self._groups = groups
        self._context: cel.Context | None = None
        self._problem = ""
        """The kind of the error for which nothing can be read; empty without one."""
        self._counts = False
        """True if all conditions may take more than MAX_STEPS together, so that each must be counted."""
        self._steps = self._nodes = self._size = 0

    def applying(self, rules: Iterable[_Placed]) -> Iterator[tuple[int, PolicyRule, str]]:
        """Yields the rules whose condition is true, or ended with an error, whose kind is yielded with it."""
        for place, rule, condition in rules:
            if condition is None:
                yield place, rule, ""
                continue
            if self._context is None and not self._problem:
                self._prepare()
            if self._counts:
                self._count(condition)
            if self._problem:
                yield place, rule, self._problem
                continue
            try:
                value = condition.execute(self._context)
            except BaseException as error:  # noqa: BLE001 - a panic of the evaluator is no Exception
                yield place, rule, _kind_of(error)
                continue
            if value is not False:
                yield place, rule, "" if value is True else NOT_BOOLEAN

    def _prepare(self) -> None:
        """Builds the context, or sets the problem."""
        facts = self._facts
        try:
            arguments = json.loads(facts.arguments_json or "{}")
            self._nodes, self._size = _measured(arguments)
            if self._nodes > MAX_NODES:
                self._problem = TOO_LARGE
                return
            self._counts = self._steps_of(self._cost) > MAX_STEPS
            self._context = context(
                {
                    "args": arguments,
                    "tool": facts.spec.name,
                    "principal": facts.principal,
                    "groups": sorted(self._groups()),
                    "tenant": facts.tenant,
                    "labels": dict(facts.labels),
                    "untrusted": facts.untrusted,
                }
            )
        except BaseException as error:  # noqa: BLE001 - a panic of the evaluator is no Exception
            self._problem = _kind_of(error)

    def _count(self, condition: Condition) -> None:
        """Counts the steps of the condition that is read next. Sets the problem once there are too many."""
        self._steps += self._steps_of(condition.cost)
        if self._steps > MAX_STEPS:
            self._problem = TOO_LARGE

    def _steps_of(self, cost: Cost) -> int:
        return cost.on(nodes=self._nodes, size=self._size)


@dataclass(frozen=True, slots=True)
class _Covering:
    """The rules that cover a tool by its name and class, in order, and what all of their conditions cost."""

    deciding: Sequence[_Placed]
    shadows: Sequence[_Placed]
    cost: Cost


class Policy:
    """The compiled rules of an agent."""

    def __init__(self, rules: Sequence[PolicyRule]) -> None:
        """A condition that is refused fails wherever it is read: another version may have stored its rule."""
        self._rules = [
            _Placed(place, rule, _condition(rule.when) if rule.when else None) for place, rule in enumerate(rules)
        ]
        self._rulings = [rule.ruling for rule in rules]
        self._known: dict[tuple[str, ToolClass], _Covering] = {}

    def ruling_on(self, facts: CallFacts, *, groups: Callable[[], frozenset[str]] = frozenset) -> Ruling:
        """Returns what the rules decide on a call. Raises nothing.

        The first rule counts that covers the tool and whose condition is true. An evaluation that fails ends the
        search: a rule that denies then denies, any other asks a person. Shadow rules are read after that, with the
        steps that are left: they change no decision.
        """
        covering = self._covering(facts.spec)
        reader = _ConditionReader(facts, covering.cost, groups)
        place, rule, error = next(reader.applying(covering.deciding), (len(self._rules), None, ""))
        ruling = (
            _completed(class_ruling(facts.spec), facts, even_untrusted=False)
            if rule is None
            else _ruling(rule, self._rulings[place], error, facts)
        )
        before = [placed for placed in covering.shadows if placed.place < place]
        shadows = tuple(
            ShadowRuling(rule=rule.title, action=_action(rule, error), error=error)
            for _, rule, error in reader.applying(before)
        )
        return replace(ruling, shadows=shadows) if shadows else ruling

    def _covering(self, spec: ToolSpec) -> _Covering:
        key = (spec.name, spec.tool_class)
        covering = self._known.get(key)
        if covering is None:
            rules = [placed for placed in self._rules if placed.rule.covers(spec)]
            covering = _Covering(
                deciding=[placed for placed in rules if not placed.rule.shadow],
                shadows=[placed for placed in rules if placed.rule.shadow],
                cost=total(placed.condition.cost for placed in rules if placed.condition is not None),
            )
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = covering
        return covering


@dataclass(slots=True)
class Policies:
    """The rules of the newest agents file on this replica. A session obeys them, whatever version it pinned."""

    configured: Mapping[str, Agent]
    """The agents of the file by name, which a reload changes in place."""
    groups_of: Callable[[str, str], frozenset[str]] = lambda _tenant, _principal: frozenset()
    """Returns the groups of a principal of a tenant."""
    denial_of: Callable[[str, str], Ruling | None] = lambda _tenant, _tool: None
    """Returns the ruling of an operator's denial that covers the tool in the tenant, or None."""
    _compiled: dict[str, tuple[tuple[PolicyRule, ...], Policy]] = field(default_factory=dict)

    def rules_of(self, agent: Agent) -> tuple[PolicyRule, ...]:
        """Returns the agent's rules: those of the file, or its own if the file no longer has an agent of its name."""
        return self.configured.get(agent.name, agent).policy

    def ruling_on(self, agent: Agent, facts: CallFacts) -> Ruling:
        """Returns what decides on a call: a denial of an operator, a rule, or the tool's class. Raises nothing."""
        denial = self.denial_of(facts.tenant, facts.spec.name)
        if denial is not None:
            return denial
        policy = self._policy(agent.name, self.rules_of(agent))
        return policy.ruling_on(facts, groups=lambda: self.groups_of(facts.tenant, facts.principal))

    def _policy(self, name: str, rules: tuple[PolicyRule, ...]) -> Policy:
        known = self._compiled.get(name)
        if known is None or known[0] is not rules:
            known = self._compiled[name] = (rules, Policy(rules))
        return known[1]


def _condition(text: str) -> Condition:
    try:
        return compiled(text)
    except BadExpression as error:
        refused = error

    def refuse(_: cel.Context | None) -> object:
        raise refused

    return Condition(execute=refuse, cost=Cost(steps=1))


def _ruling(rule: PolicyRule, ruling: Ruling, error: str, facts: CallFacts) -> Ruling:
    if error:
        text = f"{rule.text}; its condition cannot be read: {error}"
        ruling = replace(ruling, action=_action(rule, error), rule_text=text, error=error)
    return _completed(ruling, facts, even_untrusted=rule.even_untrusted)


def _action(rule: PolicyRule, error: str) -> PolicyAction:
    """Returns the rule's action; without a readable condition a rule that denies denies, and any other asks."""
    return PolicyAction.APPROVE if error and rule.action is not PolicyAction.DENY else rule.action


def _completed(ruling: Ruling, facts: CallFacts, *, even_untrusted: bool) -> Ruling:
    """Returns the ruling with the questions that no rule takes away by itself."""
    if facts.untrusted and facts.spec.tool_class is ToolClass.IRREVERSIBLE and not even_untrusted:
        ruling = ruling.asking(UNTRUSTED)
    return ruling.asking(TOOL_ASKS) if facts.spec.asks else ruling


def _measured(value: Any) -> tuple[int, int]:
    """Returns how many values these are, and how many characters their texts have. Stops beyond MAX_NODES."""
    nodes = size = 0
    waiting = [value]
    while waiting and nodes <= MAX_NODES:
        item = waiting.pop()
        nodes += 1
        if isinstance(item, dict):
            size += sum(map(len, item))
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str):
            size += len(item)
    return nodes, size


def _kind_of(error: BaseException) -> str:
    """Returns the kind of a failed evaluation. Raises what stops the process."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        raise error
    return next((kind for base, kind in _KINDS.items() if isinstance(error, base)), "failed")
