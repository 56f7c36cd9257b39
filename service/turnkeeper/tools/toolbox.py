"""Finds tools by name, checks arguments, and runs calls. Permission is the policy's task."""

import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import ToolRequest
from turnkeeper.domain.offered_tools import OfferedTools
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import (
    CLIENT,
    Call,
    ClientTool,
    ReconciledState,
    ToolOutcome,
    ToolResult,
    ToolSpec,
    canonical_json,
)
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.errors import ToolValidationError
from turnkeeper.isolation import ends_task
from turnkeeper.tools.call_places import CallPlaces
from turnkeeper.tools.catalogue import Catalogue
from turnkeeper.tools.comparison import ArgumentsSchema, Steps
from turnkeeper.tools.contract import (
    CannotReconcile,
    NoAnswerYet,
    NotStarted,
    OutcomeUnknown,
    Reconciled,
    ReconcilingSource,
    SourceUnreachable,
    StillRunning,
    ToolContext,
    ToolSource,
)
from turnkeeper.tools.failure import Failure, failure_of
from turnkeeper.tools.listing import Listing
from turnkeeper.tools.results import RESULT_BYTES, UnfitResult, error_text, result_text
from turnkeeper.tools.under_way import CallsUnderWay

ARGUMENTS_BYTES = 64 * 1024
"""The largest arguments as JSON text in UTF-8."""
ANSWER_STEPS = 500_000
"""Steps of all comparisons of one answer, at most: about 2 s in a thread."""
EDIT_STEPS = 100_000
"""Steps of the comparison of arguments that a person edited, at most."""

NO_CALLER = ToolCaller("", "")
"""Of a call that belongs to no turn."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A tool call that this owner ran to its result."""

    call_id: str
    result: ToolResult
    attempt: int = 0
    """The attempt that started the call; 0 if that decides nothing."""
    duration: timedelta
    """From start to result."""
    reconciled: Reconciled | None = None
    """What the tool's server told afterwards, as the result does not tell what became of the call."""
    most_starts: int = 1
    """Starts that the call may have in all; above 1 only if another one may succeed.

    So it is without a connection, without an answer in time, and after an error that was no message of the tool.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRequest:
    """A tool call as a model requested it, compared with its tool before anything is decided on it."""

    request: ToolRequest
    spec: ToolSpec | None
    """The tool; None if neither the agent nor the turn's client has it."""
    arguments_json: str
    """Canonical JSON if the tool takes the arguments, otherwise the model's own text."""
    problem: str = ""
    """Why the tool does not take the arguments, for the model; empty if it does."""
    ruling: Ruling | None = None
    """What the policy decides on it; None before it was read, and where it is not."""


class Toolbox:
    """The tools of all sources, by name."""

    def __init__(
        self, sources: Sequence[ToolSource], *, catalogue: Catalogue | None = None, record_content: bool = False
    ) -> None:
        """Raises AgentConfigError if two sources have a tool of one name.

        `record_content`: the log also has the text of an exception that a tool raised.
        """
        self.under_way = CallsUnderWay()
        self._record_content = record_content
        self._listing = Listing(sources, catalogue or Catalogue())
        self._listing.check_names()
        self._rooms: dict[tuple[str, int], CallPlaces] = {}
        """By the pattern and the number of an entry of the catalogue."""
        self._schemas: dict[str, ArgumentsSchema] = {}
        """The schemas of the sources' tools as values, by their texts."""

    def reload(self, sources: Sequence[ToolSource], *, catalogue: Catalogue | None = None) -> None:
        """Takes these sources, and reads them again. A call that has started goes on with what it has.

        Raises as `__init__`, and then leaves everything as it is.
        """
        listing = Listing(sources, catalogue or Catalogue(), self._listing)
        listing.check_names()
        listing.log_problems(self._listing)
        self._listing = listing
        self._schemas = {}

    @property
    def listing(self) -> Listing:
        """Returns the tools of all sources as they are now.

        A tool that a source has added gets no name that another one has: it is refused, with a WARNING.
        """
        before = self._listing
        if not before.is_current:
            self._listing = Listing(before.sources, before.catalogue, before)
            self._listing.log_problems(before)
            self._schemas = {}
        return self._listing

    @property
    def names(self) -> Collection[str]:
        """Returns the names of all tools."""
        return self.listing.tools.keys()

    @property
    def is_complete(self) -> bool:
        """Returns False if a source has no list yet: a tool that is not here may be one of its."""
        return not self.listing.unreachable

    @property
    def catalogue(self) -> Catalogue:
        """Returns what the operator states about tools."""
        return self._listing.catalogue

    def offered(self, agent: Agent, *, clients: Sequence[ClientTool] = ()) -> OfferedTools:
        """Returns the agent's tools by name, then those that the turn's client runs.

        Without a client's tools it is the same object at each call, until a source changes.
        """
        own = self.listing.offered(agent)
        return own.beside(clients) if clients else own

    def find(self, agent: Agent, name: str, *, clients: Sequence[ClientTool] = ()) -> ToolSpec | None:
        """Returns the tool, or None if neither the agent nor the turn's client has it.

        A client's tool counts first: a tool of its name may have been installed after the message was accepted.
        """
        for tool in clients:
            if tool.name == name:
                return tool.spec
        listed = self.listing.tools.get(name)
        return listed.spec if listed is not None and listed.is_for(agent) else None

    def source_of(self, name: str) -> str:
        """Returns the name of the source that an installed tool comes from; empty if the tool is gone."""
        listed = self.listing.tools.get(name)
        return listed.spec.source if listed is not None else ""

    def time_of(self, name: str, *, at_most: timedelta) -> timedelta:
        """Returns how long a call of the tool may run: its own time if that is shorter than `at_most`."""
        listed = self.listing.tools.get(name)
        return min(at_most, (listed.spec.timeout if listed is not None else None) or at_most)

    def attempts_of(self, name: str) -> int:
        """Returns how many starts a call of the tool may have while its tries fail."""
        listed = self.listing.tools.get(name)
        return listed.entry.attempts if listed is not None else 1

    def room_of(self, name: str) -> CallPlaces | None:
        """Returns what a call of the tool takes while it runs; None if any number may run at the same time."""
        listed = self.listing.tools.get(name)
        if listed is None or listed.entry.concurrency is None:
            return None
        key = (listed.entry.tool, listed.entry.concurrency)
        return self._rooms.setdefault(key, CallPlaces(listed.entry.concurrency))

    def checked(
        self, requests: Sequence[ToolRequest], agent: Agent, *, clients: Sequence[ClientTool] = ()
    ) -> tuple[CheckedRequest, ...]:
        """Returns the requests of one answer of a model, each compared with its tool. Raises nothing.

        Takes up to a few seconds: the caller runs it in a thread.
        """
        steps = Steps(ANSWER_STEPS)
        return tuple(self._checked(request, agent, clients, steps) for request in requests)

    def check(self, spec: ToolSpec, arguments_json: str, *, steps: Steps | None = None) -> str:
        """Returns the arguments as canonical JSON. Raises ToolValidationError with a message for the model.

        `steps` are taken from those that the arguments of several calls share.
        """
        check_arguments_size(arguments_json)
        try:
            canonical = canonical_json(arguments_json or "{}")
        except ValueError as error:
            raise ToolValidationError(f"The arguments are not JSON that can be used: the text {error}.") from error
        check_arguments_size(canonical)
        problem = self._schema(spec).problem(json.loads(canonical), steps=steps)
        if problem is not None:
            where = "/".join(str(part) for part in problem.absolute_path) or "the arguments"
            raise ToolValidationError(f"{where[:200]}: {problem.message[:500]}")
        return canonical

    def _checked(
        self, request: ToolRequest, agent: Agent, clients: Sequence[ClientTool], steps: Steps
    ) -> CheckedRequest:
        spec = self.find(agent, request.tool, clients=clients)
        unfit = CheckedRequest(request=request, spec=spec, arguments_json=request.arguments_json)
        if spec is None:
            return unfit
        try:
            canonical = self.check(spec, request.arguments_json, steps=steps)
        except ToolValidationError as error:
            return replace(unfit, problem=error.message)
        except Exception as error:  # whatever the arguments lead to is a result for the model
            logger.exception("the arguments of a call of %s could not be checked: the model receives that", spec.name)
            return replace(unfit, problem=f"The arguments cannot be checked ({type(error).__name__}).")
        return replace(unfit, arguments_json=canonical)

    def _schema(self, spec: ToolSpec) -> ArgumentsSchema:
        """Returns a tool's schema. Raises ToolValidationError if it cannot be read."""
        if spec.source == CLIENT:
            return _client_schema(spec.schema_json)
        schemas = self._schemas  # once: the tools may change meanwhile, and this runs in a thread
        schema = schemas.get(spec.schema_json)
        if schema is None:
            is_trusted = not self._listing.catalogue.is_foreign(spec.source)
            schema = schemas[spec.schema_json] = _schema_of(spec.schema_json, is_trusted=is_trusted)
        return schema

    async def run(
        self,
        call: Call,
        *,
        timeout: timedelta = timedelta(seconds=30),
        caller: ToolCaller = NO_CALLER,
        report: Callable[[str], None] = lambda _: None,
    ) -> Finished:
        """Runs a started call to its end, and returns its result; every failure is a result.

        `report` takes lines about how far the tool is, from any thread.
        The caller cancels the task after `timeout`; the tool's source may end earlier. Raises CancelledError alone, if
        the current task is cancelled.
        """
        context = replace(_context(call, caller, timeout=timeout), report=report)
        began, most_starts = time.monotonic(), 1
        try:
            listed = self.listing.tools.get(call.tool)
            if listed is None or listed.spec.source != (call.source or listed.spec.source):  # not as it was decided on
                raise NotStarted("The tool is gone; it did not run.")
            with self.under_way.at(listed.source):
                text = await listed.source.call(call.tool, json.loads(call.arguments_json), context)
            result = _checked(text, most=listed.entry.result_bytes)
        except OutcomeUnknown as error:
            outcome = ToolOutcome.FAILED if call.tool_class.may_start_again else ToolOutcome.UNKNOWN
            result, most_starts = replace(_failure(str(error)), outcome=outcome), self.attempts_of(call.tool)
        except BaseException as error:
            if ends_task(error):
                raise
            failure = failure_of(error)
            result = self._failed(call, failure)
            if failure.message is None or isinstance(error, NotStarted):
                most_starts = self.attempts_of(call.tool)
        return Finished(
            call_id=call.id,
            result=result,
            attempt=call.attempt,
            duration=timedelta(seconds=time.monotonic() - began),
            most_starts=most_starts,
        )

    def reconciles(self, call: Call) -> bool:
        """Returns True if the source of the call's tool may tell what became of the call."""
        return self._reconciler_of(call) is not None

    async def reconcile(self, call: Call, *, caller: ToolCaller = NO_CALLER) -> Reconciled | StillRunning | NoAnswerYet:
        """Returns what the source tells of a STARTED call.

        A source that has no answers of this kind gives NO_ANSWER. Raises CancelledError alone.
        """
        source = self._reconciler_of(call)
        if source is None:
            return Reconciled(state=ReconciledState.NO_ANSWER)
        try:
            answer = await source.reconcile(call.tool, _context(call, caller))
            return self._capped(call.tool, answer) if isinstance(answer, Reconciled) else answer
        except CannotReconcile:
            return Reconciled(state=ReconciledState.NO_ANSWER)
        except BaseException as error:
            if ends_task(error):
                raise
            failure = failure_of(error)
            return NoAnswerYet(str(error) if isinstance(error, SourceUnreachable) else failure.message or failure.kind)

    def _capped(self, tool: str, answer: Reconciled) -> Reconciled:
        """Returns the answer; with words in place of a result that is larger than the catalogue allows."""
        listed = self.listing.tools.get(tool)
        try:
            _checked(answer.result_json, most=listed.entry.result_bytes if listed is not None else RESULT_BYTES)
        except UnfitResult as unfit:
            took_effect = answer.took_effect or answer.state is ReconciledState.DONE
            text = error_text(str(unfit))
            return Reconciled(state=ReconciledState.FAILED, result_json=text, took_effect=took_effect)
        return answer

    def _reconciler_of(self, call: Call) -> ReconcilingSource | None:
        """Returns the source that the call was started at, also if it lists the tool no longer."""
        for source in self._listing.sources:
            if isinstance(source, ReconcilingSource) and source.name == call.source:
                return source
        return None

    def _failed(self, call: Call, failure: Failure) -> ToolResult:
        """Returns the failure as the model receives it, and logs what is not a tool's own message."""
        if failure.message is not None:
            return _failure(failure.message)
        logger.warning(
            "tool %s raised %s (%s)%s; the model receives a failed result",
            call.tool,
            failure.kind,
            " > ".join(failure.frames) or "no frames",
            f": {failure.text}" if self._record_content else "",
            extra={"session": call.session_id, "turn": call.turn_id, "tool_call": call.id},
        )
        return _failure(f"The tool failed ({failure.kind}).")


def _context(call: Call, caller: ToolCaller, *, timeout: timedelta = timedelta(seconds=30)) -> ToolContext:
    """Returns what a source may know about the call."""
    return ToolContext(
        key=call.key,
        tenant=call.tenant,
        session_id=call.session_id,
        turn_id=call.turn_id,
        tool_call_id=call.id,
        agent=caller.agent,
        attempt=call.attempt,
        arguments_hash=call.arguments_hash,
        timeout=timeout,
        start_time=call.start_time,
        arguments_json=call.arguments_json,
        principal=caller.principal,
        on_behalf_of=caller.on_behalf_of,
        approval_id=call.approval_id,
    )


def _schema_of(schema_json: str, *, is_trusted: bool) -> ArgumentsSchema:
    try:
        return ArgumentsSchema(json.loads(schema_json), is_trusted=is_trusted)
    except (ValueError, RecursionError):
        raise ToolValidationError("The tool's schema cannot be read.") from None


@lru_cache(maxsize=8)
def _client_schema(schema_json: str) -> ArgumentsSchema:
    """Returns the schema of a message's tool. It is kept for the calls of one answer: a thousand may have it."""
    return _schema_of(schema_json, is_trusted=False)


def check_arguments_size(arguments_json: str) -> None:
    """Raises ToolValidationError if the arguments are larger than a call's may be."""
    if len(arguments_json.encode(errors="replace")) > ARGUMENTS_BYTES:
        raise ToolValidationError(f"The arguments are over {ARGUMENTS_BYTES} bytes; send less.")


def _checked(text: str, *, most: int) -> ToolResult:
    """Returns a source's result. Raises UnfitResult if it has more than `most` bytes."""
    if len(text.encode()) > most:
        raise UnfitResult(f"The result has more than {most} bytes; ask for less.")
    return ToolResult(outcome=ToolOutcome.OK, result_json=text)


def _failure(message: str) -> ToolResult:
    """Returns a failed result with a message for the model; with another one if JSON cannot hold that."""
    try:
        text = result_text({"error": message})
    except UnfitResult as unfit:
        text = error_text(str(unfit))
    return ToolResult(outcome=ToolOutcome.FAILED, result_json=text)
