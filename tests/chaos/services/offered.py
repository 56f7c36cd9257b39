"""The tools of the tool servers, by their full names."""

from collections.abc import Mapping
from typing import Final

BANK, DESK, SHED = "bank", "desk", "shed"
"""The servers: over gRPC, of MCP over HTTP, of MCP over stdio."""
PYTHON: Final = "python"
"""Where the tools of the service's own process are."""
CLASSES: Final[Mapping[str, str]] = {
    "bank__charge": "IRREVERSIBLE",
    "bank__wire": "IRREVERSIBLE",
    "bank__quote": "READ_ONLY",
    "desk__order": "IRREVERSIBLE",
    "desk__file": "IDEMPOTENT",
    "shed__ship": "IRREVERSIBLE",
    "shed__fetch": "READ_ONLY",
}
READS: Final = frozenset({"desk__order", "shed__fetch"})
"""The tools whose servers state that they only read. Of the first it is not true."""
KEY: Final = "turnkeeper/idempotency-key"
ATTEMPT: Final = "turnkeeper/attempt"
"""Where a call of an MCP server has its key and its attempt."""
SCHEMA: Final = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
"""The arguments of each of them."""
NEED_APPROVAL: Final = frozenset({"bank__charge", "desk__order"})
"""The tools that need an approval: by a rule of agents.toml, and because the catalogue states no class."""


def tools_of(server: str) -> Mapping[str, bool]:
    """Returns the server's own names of its tools, and whether it states that they only read."""
    return {name.partition("__")[2]: name in READS for name in CLASSES if source_of(name) == server}


def source_of(tool: str) -> str:
    """Returns the name of the tool's server; PYTHON for a tool of the service's own process."""
    source, separator, _ = tool.partition("__")
    return source if separator else PYTHON
