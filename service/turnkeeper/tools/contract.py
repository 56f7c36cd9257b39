"""The contract between the toolbox and a source of tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
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
    attempt: int = 1
    """The attempt of the turn that starts the call: higher at each start of one call."""
    arguments_hash: str = ""
    """The hash of what was decided on, see `decision_hash`."""
    timeout: timedelta = timedelta(seconds=30)
    """How long the call may run, by the agent and the tool."""
    report: Callable[[str], None] = lambda _: None
    """Takes a line about how far the tool is, for people. Raises nothing, and does not wait."""


class ToolError(Exception):
    """A tool's failure with a message for the model. The message must hold no secret."""


class NotStarted(ToolError):
    """The call certainly never reached the tool: no connection opened, or the tool's server refused the start."""


class OutcomeUnknown(Exception):
    """The call was sent, and nothing tells whether it took effect. The message is for the model, without a secret."""


class SourceUnreachable(Exception):
    """A source of tools does not answer: the service starts without its tools. The message names the source."""


class ToolSource(Protocol):
    """Where tools come from, for example the functions of installed packages."""

    @property
    def listing(self) -> int:
        """Returns a number that changes whenever `specs` would return something else. It is read at each model call."""
        ...

    def specs(self) -> Sequence[ToolSpec]:
        """Returns all tools of this source; their names are unique among all sources. May raise SourceUnreachable."""
        ...

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Runs the tool and returns its result as JSON text, see `results.result_text`.

        Raises ToolError (NotStarted if the call never reached the tool) or UnfitResult with a message for the model,
        OutcomeUnknown, or ToolFailed. Of any other exception the model receives the class name alone. A cancellation
        ends the tool where that is possible.
        """
        ...
