"""The contract between the toolbox and a source of tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from turnkeeper.domain.tool import ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know about its call."""

    key: str
    """The same for every start of one call: the tool passes it on as the idempotency key."""
    tenant: str
    session_id: str
    turn_id: str
    tool_call_id: str
    agent: str = ""
    """The agent whose turn calls the tool."""


class ToolError(Exception):
    """A tool's failure with a message for the model. The message must hold no secret."""


class SourceUnreachable(Exception):
    """A source of tools does not answer: the service starts without its tools. The message names the source."""


class ToolSource(Protocol):
    """Where tools come from, for example the functions of installed packages."""

    def specs(self) -> Sequence[ToolSpec]:
        """Returns all tools of this source; their names are unique among all sources. May raise SourceUnreachable."""
        ...

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Runs the tool and returns its result as JSON text, see `results.result_text`.

        Raises ToolError or UnfitResult with a message for the model, or ToolFailed. Of any other exception the model
        receives the class name alone. A cancellation ends the tool where that is possible.
        """
        ...
