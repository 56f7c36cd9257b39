"""Warns of rules that need more people than the principals file has."""

from collections.abc import Iterator, Mapping

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.identity.caller import AccessRole, Caller
from turnkeeper.identity.principals import Table


def warnings(agents: Mapping[str, Agent], table: Table) -> list[str]:
    """Returns a sentence for each rule and each tenant in which the rule cannot be met."""
    approvers: dict[str, list[Caller]] = {}
    for (tenant, _), person in table.persons.items():
        approvers.setdefault(tenant, []).extend([person] if AccessRole.APPROVER in person.roles else [])
    return [
        f"{name}, rule {rule.title}: {problem}"
        for name, agent in agents.items()
        for rule in agent.policy
        if rule.action is PolicyAction.APPROVE
        for problem in _problems(rule, approvers)
    ]


def _problems(rule: PolicyRule, approvers: Mapping[str, list[Caller]]) -> Iterator[str]:
    """Yields a sentence for each tenant with too few. `approvers`: those with the role, by tenant."""
    needed = max(rule.approvers.k, rule.approvers.reject_at)
    for tenant, people in sorted(approvers.items()):
        count = sum(rule.approvers.name(person.principal, person.groups) for person in people)
        if count < needed:
            yield f"needs {needed} persons, and {count} with the role approver are eligible in tenant {tenant}"
