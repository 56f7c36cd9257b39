"""An agent: instructions, a model, tools, a policy, limits; its version names its content."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cached_property

from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """`tool` is a name, or a pattern with `*` and `?`. `ttl`: how long an approval can be decided."""

    tool: str
    action: PolicyAction
    ttl: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """Limits of a turn. `max_output_tokens` 0 leaves it to the provider."""

    max_iterations: int = 16
    max_output_tokens: int = 0
    max_attempts: int = 4
    tool_timeout: timedelta = timedelta(seconds=30)
    parallel_tools: int = 4


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One version of an agent. `base_url` and `api_key_env` name another model server than the default one.

    Without slots: its version is computed once, for every turn asks for it.
    """

    name: str
    model: str
    instructions: str = ""
    description: str = ""
    base_url: str = ""
    api_key_env: str = ""
    temperature: float | None = None
    tools: tuple[str, ...] = ()
    policy: tuple[PolicyRule, ...] = ()
    limits: AgentLimits = field(default_factory=AgentLimits)

    @cached_property
    def version(self) -> str:
        """12 hexadecimal digits of the content's SHA-256: the same content is the same version anywhere."""
        content = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def offers(self, tool: str) -> bool:
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def rule_for(self, spec: ToolSpec) -> PolicyRule:
        return self.rule_named(spec.name, spec.tool_class)

    def rule_named(self, tool: str, tool_class: ToolClass) -> PolicyRule:
        """The first rule that names the tool; without one, reading is free and everything else asks."""
        for rule in self.policy:
            if fnmatchcase(tool, rule.tool):
                return rule
        free = tool_class is ToolClass.READ_ONLY
        return PolicyRule(tool=tool, action=PolicyAction.AUTO if free else PolicyAction.APPROVE)
