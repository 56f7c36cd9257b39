"""The contract between the toolbox and a source of tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from turnkeeper.domain.tool import ReconciledState, ToolSpec


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
    start_time: datetime | None = None
    """When the start was stored, by the owner's clock."""
    arguments_json: str = "{}"
    """The arguments as canonical JSON: exactly what was decided on."""
    principal: str = ""
    """The principal whose message led to the call."""
    on_behalf_of: str = ""
    """The person for whom the principal, a delegate, sent that message; empty without a delegate."""
    approval_id: str = ""
    """The approval that let the call start; empty if the policy let it."""
    report: Callable[[str], None] = lambda _: None
    """Takes a line about how far the tool is, for watchers, see `CallProgress`. From any thread; waits for nothing."""


class ToolError(Exception):
    """A tool's failure with a message for the model. The message must hold no secret."""


class NotStarted(ToolError):
    """The call certainly never reached the tool: no connection opened, or the tool's server refused the start."""


class OutcomeUnknown(Exception):
    """The call was sent, and nothing tells whether it took effect. The message is for the model, without a secret."""


class SourceUnreachable(Exception):
    """A source of tools does not answer: the service starts without its tools. The message names the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What a source tells of a call that had started and whose result is missing."""

    state: ReconciledState
    result_json: str = ""
    """Of a call that is DONE or FAILED."""
    took_effect: bool = False
    """Of a FAILED call: it took effect, at least in part."""


@dataclass(frozen=True, slots=True)
class StillRunning:
    """The call runs. The source can tell more after `retry_after`."""

    retry_after: timedelta


@dataclass(frozen=True, slots=True)
class NoAnswerYet:
    """No answer came about what became of a call; a later request may get one."""

    reason: str
    """For the log, without a secret."""


class CannotReconcile(Exception):
    """The tool's server never tells what became of a call: it lacks the method. The message names the source."""


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


@runtime_checkable
class ReconcilingSource(ToolSource, Protocol):
    """A source that can tell what became of a call after its owner was lost, a timeout, or a broken connection."""

    @property
    def name(self) -> str:
        """Returns the source's name, which is that of its specs' `source`."""
        ...

    async def reconcile(self, name: str, context: ToolContext) -> Reconciled | StillRunning:
        """Returns what became of the start that the context names, by its key and its attempt.

        NOT_STARTED is a promise: a start under that key with this attempt or a lower one will have no effect. Raises
        CannotReconcile, and SourceUnreachable if no answer came, which a later try may get.
        """
        ...


class ServerSource(ToolSource, Protocol):
    """The tools of a server of the catalogue, which is reached by a connection.

    `specs` returns them as last listed, and raises SourceUnreachable before the first list. Of each spec `source` is
    `name`, the name is `naming.full_name`, and the class is the least that the server's own words allow: READ_ONLY
    unless they are stricter. The catalogue tightens it, see `Catalogue.stated`. A tool whose schema has a
    `schema_problem` is left out: it would fail each call of a model.
    """

    @property
    def name(self) -> str:
        """Returns the server's name in the catalogue."""
        ...

    @property
    def problem(self) -> str:
        """Returns why calls fail now, for the operator; empty if they do not. It holds no secret."""
        ...

    async def run(self) -> None:
        """Keeps what the calls need until it is cancelled, then closes it. It may run again after that.

        Called once before any call. Calls fail while it does not run.
        """
        ...

    async def refresh(self) -> None:
        """Lists the tools anew, while `run` runs. Raises SourceUnreachable. A cancellation ends it at once."""
        ...
