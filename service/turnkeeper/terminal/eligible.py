"""Warns of rules that need more people than the principals file has, and of names that it does not have."""

from collections.abc import Iterator, Mapping

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.identity.caller import AccessRole, Caller
from turnkeeper.identity.principals import Table


def warnings(agents: Mapping[str, Agent], table: Table) -> list[str]:
    """Returns a sentence for each rule that cannot be met in a tenant; those of a rule that is met nowhere once."""
    tenants = sorted({tenant for tenant, _ in table.persons})
    return [
        f"{name}, rule {rule.title}: {problem}"
        for name, agent in agents.items()
        for rule in agent.policy
        if rule.action is PolicyAction.APPROVE
        for problem in _problems(rule, table, tenants)
    ]


def _problems(rule: PolicyRule, table: Table, tenants: list[str]) -> Iterator[str]:
    needed = max(rule.approvers.k, rule.approvers.reject_at)
    eligible = {tenant: sum(_may_decide(rule, person) for person in _persons(table, tenant)) for tenant in tenants}
    for tenant, count in eligible.items():
        if count < needed:
            yield f"needs {needed} persons, and {count} with the role approver are eligible in tenant {tenant}"


def _persons(table: Table, tenant: str) -> Iterator[Caller]:
    return (person for (of, _), person in table.persons.items() if of == tenant)


def _may_decide(rule: PolicyRule, person: Caller) -> bool:
    return AccessRole.APPROVER in person.roles and rule.approvers.name(person.principal, person.groups)
