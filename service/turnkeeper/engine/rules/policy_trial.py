"""What a policy would decide on a call that could be: for EvaluatePolicy and `turnkeeper policy test`. Runs nothing."""

from collections.abc import Mapping

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import Ruling
from turnkeeper.errors import ToolNotFound
from turnkeeper.policy.policies import CallFacts, Policies
from turnkeeper.tools.comparison import Steps
from turnkeeper.tools.toolbox import EDIT_STEPS, Toolbox


def evaluated(  # noqa: PLR0913 - what a policy reads of a call
    policies: Policies,
    toolbox: Toolbox,
    agent: Agent,
    *,
    tool: str,
    arguments_json: str,
    tenant: str,
    principal: str,
    labels: Mapping[str, str],
    untrusted: bool,
) -> Ruling:
    """Returns the ruling on a call. Takes up to a second.

    Raises ToolNotFound if the agent has no such tool, ToolValidationError if the tool does not take the arguments.
    """
    spec = toolbox.find(agent, tool)
    if spec is None:
        raise ToolNotFound(f"The agent {agent.name} has no tool {tool}.", metadata={"tool": tool})
    canonical = toolbox.check(spec, arguments_json, steps=Steps(EDIT_STEPS))
    facts = CallFacts(
        spec=spec,
        arguments_json=canonical,
        tenant=tenant,
        principal=principal,
        labels=labels,
        untrusted=untrusted,
    )
    return policies.ruling_on(agent, facts)
