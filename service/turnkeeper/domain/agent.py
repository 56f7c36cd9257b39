"""An agent: instructions, a model, tools, a policy and limits. Its version is a hash of its content."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cached_property

from turnkeeper.domain.policy import PolicyRule

_ADDED = frozenset(
    {"limit_field", "omit", "extra_headers", "extra_body_json", "follow_redirects", "max_concurrent_turns"}
)
"""Fields of an agent that the first version did not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """The limits of one turn of an agent."""

    max_iterations: int = 16
    """Model calls of one turn."""
    max_output_tokens: int = 0
    """Tokens of one model message; 0 leaves the limit to the provider."""
    max_attempts: int = 4
    """Tries of one model call."""
    tool_timeout: timedelta = timedelta(seconds=30)
    """How long one tool call may run."""
    parallel_tools: int = 4
    """Tool calls of one turn that may run at the same time."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """One version of an agent.

    Without slots: the version is computed once and cached, because every turn reads it.
    """

    name: str
    model: str
    """The model's name, as its provider calls it."""
    instructions: str = ""
    """The system prompt; empty sends none."""
    description: str = ""
    """For people who choose an agent; the model never sees it."""
    base_url: str = ""
    """The address of the agent's own model server; empty uses the service's default one."""
    api_key_env: str = ""
    """The environment variable with the key for `base_url`; empty reads OPENAI_API_KEY."""
    temperature: float | None = None
    """None leaves it to the provider."""
    limit_field: str = ""
    """The field of a request that holds the output limit; empty: as the server's address suggests."""
    omit: tuple[str, ...] = ()
    """Fields of a request that are not sent."""
    extra_headers: tuple[tuple[str, str], ...] = ()
    """Names and values of headers that each request has; `${NAME}` in a value stands for an environment variable."""
    extra_body_json: str = ""
    """Fields that each request has, a JSON object; empty for none."""
    follow_redirects: bool = False
    """True: a redirect of the model's server to another origin is followed, with the whole conversation."""
    tools: tuple[str, ...] = ()
    """Names of tools, or patterns with `*` and `?`."""
    policy: tuple[PolicyRule, ...] = ()
    """Rules in order: the first that covers a tool counts."""
    limits: AgentLimits = field(default_factory=AgentLimits)
    max_concurrent_turns: int = 0
    """Turns of the agent that may run on one replica at the same time, whatever their versions; 0 sets no limit."""

    @cached_property
    def version(self) -> str:
        """Returns 12 hexadecimal digits of the content's SHA-256: equal content has an equal version on any replica.

        Fields that older replicas do not know count only if they are set. The policy does not count: its rules are not
        pinned.
        """
        fields = {name: value for name, value in asdict(self).items() if value or name not in _ADDED}
        fields["policy"] = ()
        content = json.dumps(fields, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def offers(self, tool: str) -> bool:
        """Returns True if the agent may call the tool of this name."""
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)
