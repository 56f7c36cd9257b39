"""Reads the rules of an agent's policy from their tables in a file of agents."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from turnkeeper.agents_table import AgentsTable
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass
from turnkeeper.policy.expression import BadExpression, compiled

_KEYS: Final = frozenset(
    {"tool", "class", "when", "action", "ttl", "name", "note", "approve", "even_untrusted", "shadow"}
)
_CLASSES: Final = (ToolClass.READ_ONLY, ToolClass.IDEMPOTENT, ToolClass.IRREVERSIBLE)
_APPROVE_KEYS: Final = frozenset(
    {"groups", "principals", "k", "exclude_requester", "veto", "reject_at", "ttl", "direct", "remember"}
)
_PEOPLE: Final = ("groups", "principals")
_SWITCHES: Final = ("exclude_requester", "veto", "direct", "remember")


def rule_of(table: AgentsTable) -> PolicyRule:
    """Returns the rule. Raises AgentConfigError, which names file, line, agent and key."""
    table.check_keys(_KEYS, foreign=dict.fromkeys(_APPROVE_KEYS, "[agent.policy.approve]"))
    tool = table.string("tool")
    if not tool:
        table.refuse("tool", "is missing: a rule needs the name of a tool, or a pattern")
    action = _action(table)
    approve = table.table("approve")
    approve.check_keys(_APPROVE_KEYS, foreign=dict.fromkeys(_KEYS, "[[agent.policy]]"))
    if approve.entry and action is not PolicyAction.APPROVE:
        table.refuse("approve", 'needs action = "approve"')
    ttl = _ttl(table, approve)
    return PolicyRule(
        tool=tool,
        action=action,
        name=table.string("name"),
        note=table.string("note"),
        approvers=_approvers(approve),
        tool_class=_tool_class(table),
        when=_when(table),
        even_untrusted=table.switch("even_untrusted"),
        shadow=table.switch("shadow"),
        **ttl,
    )


def _action(table: AgentsTable) -> PolicyAction:
    """Returns the rule's action; APPROVE if it is not there and the rule has an `approve`."""
    action = table.string("action")
    if not action and "approve" in table.entry:
        return PolicyAction.APPROVE
    actions = [action.value.lower() for action in PolicyAction]
    if action not in actions:
        table.refuse("action", f"must be one of {', '.join(actions)}")
    return PolicyAction(action.upper())


def _tool_class(table: AgentsTable) -> ToolClass | None:
    name = table.string("class")
    names = [tool_class.value.lower() for tool_class in _CLASSES]
    if name and name not in names:
        table.refuse("class", f"must be one of {', '.join(names)}")
    return ToolClass(name.upper()) if name else None


def _when(table: AgentsTable) -> str:
    text = table.string("when")
    if text:
        try:
            compiled(text)
        except BadExpression as error:
            table.refuse("when", str(error))
    return text


def _ttl(table: AgentsTable, approve: AgentsTable) -> Mapping[str, timedelta]:
    if "ttl" in table.entry and "ttl" in approve.entry:
        table.refuse("ttl", "is there twice: here and in approve")
    owner = approve if "ttl" in approve.entry else table
    return {"ttl": owner.duration("ttl")} if "ttl" in owner.entry else {}


def _approvers(table: AgentsTable) -> Approvers:
    switches = {key: table.switch(key) for key in _SWITCHES if key in table.entry}
    counts = {key: table.count(key) for key in ("k", "reject_at") if key in table.entry}
    if "reject_at" in counts and switches.get("veto", True):
        table.refuse("reject_at", "needs veto = false: otherwise one rejection ends the approval")
    people = {key: frozenset(table.strings(key, f"names of {key}")) for key in _PEOPLE if key in table.entry}
    for key, names in people.items():
        if not names:
            table.refuse(key, "is empty: leave it out, and any approver may decide")
    values: dict[str, Any] = {**people, **switches, **counts}
    return Approvers(**values)
