"""What the engine asks of a source of tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from turnkeeper.domain.tool import ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know of its call. `key` is the same for every start of one call: pass it on."""

    key: str
    tenant: str
    session_id: str
    turn_id: str
    tool_call_id: str


class ToolError(Exception):
    """Raised by a tool: it failed, and the model is told this message. It must hold no secret."""


class ToolSource(Protocol):
    def specs(self) -> Sequence[ToolSpec]:
        """All tools of this source; names are unique over all sources."""
        ...

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> object:
        """Run the tool and return what it gave, as JSON can hold it.

        Raises ToolError with words for the model; any other exception is a failure without words. A cancellation
        ends the tool where it can.
        """
        ...
