"""Finds tools by name, checks arguments, and runs calls. Permission is the policy's task."""

import json
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import ToolRequest
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import (
    CLIENT,
    Call,
    ClientTool,
    ReconciledState,
    ToolClass,
    ToolOutcome,
    ToolResult,
    ToolSpec,
    canonical_json,
)
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.errors import AgentConfigError, ToolValidationError
from turnkeeper.isolation import ends_task
from turnkeeper.tools.comparison import ArgumentsSchema, Steps
from turnkeeper.tools.contract import (
    CannotReconcile,
    OutcomeUnknown,
    Reconciled,
    ReconcilingSource,
    SourceUnreachable,
    StillRunning,
    ToolContext,
    ToolError,
    ToolSource,
)
from turnkeeper.tools.failure import Failure, failure_of
from turnkeeper.tools.results import RESULT_BYTES, UnfitResult, result_text

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

    def __init__(self, sources: Sequence[ToolSource], *, record_content: bool = False) -> None:
        """Raises AgentConfigError if two sources have a tool of one name.

        `record_content`: the log also has the text of an exception that a tool raised.
        """
        self._record_content = record_content
        self._sources = sources
        self.is_complete = True
        """False if a source cannot be reached: a tool that is not here may be one of its."""
        self._tools = self._tools_of_sources()
        self._schemas: dict[str, ArgumentsSchema] = {}
        """The installed tools' schemas as values, by their texts."""

    def reload(self) -> None:
        """Reads the sources again. A call that has started goes on with what it has. Raises as `__init__`."""
        self._tools = self._tools_of_sources()

    @property
    def names(self) -> Collection[str]:
        """Returns the names of all tools."""
        return self._tools.keys()

    def _tools_of_sources(self) -> dict[str, tuple[ToolSpec, ToolSource]]:
        tools: dict[str, tuple[ToolSpec, ToolSource]] = {}
        for source in self._sources:
            for spec in self._specs_of(source):
                if spec.name in tools:
                    raise AgentConfigError(f"Two sources have a tool named {spec.name}; rename one.")
                tools[spec.name] = (spec, source)
        return tools

    def _specs_of(self, source: ToolSource) -> Sequence[ToolSpec]:
        """Returns the tools of a source; none, with a WARNING, if it cannot be reached."""
        try:
            return source.specs()
        except SourceUnreachable as error:
            self.is_complete = False
            logger.warning("a source of tools cannot be reached: the service starts without its tools: %s", error)
            return ()

    def offered(self, agent: Agent, *, clients: Sequence[ClientTool] = ()) -> tuple[ToolSpec, ...]:
        """Returns the agent's tools by name, then those that the turn's client runs."""
        theirs = {tool.name for tool in clients}
        own = (spec for name, (spec, _) in sorted(self._tools.items()) if _has(agent, spec) and name not in theirs)
        return (*own, *(tool.spec for tool in clients))

    def find(self, agent: Agent, name: str, *, clients: Sequence[ClientTool] = ()) -> ToolSpec | None:
        """Returns the tool, or None if neither the agent nor the turn's client has it.

        A client's tool counts first: a tool of its name may have been installed after the message was accepted.
        """
        for tool in clients:
            if tool.name == name:
                return tool.spec
        spec = self._tools[name][0] if name in self._tools else None
        return spec if spec is not None and _has(agent, spec) else None

    def source_of(self, name: str) -> str:
        """Returns the name of the source that an installed tool comes from; empty if the tool is gone."""
        return self._tools[name][0].source if name in self._tools else ""

    def time_of(self, name: str, *, at_most: timedelta) -> timedelta:
        """Returns how long a call of the tool may run: its own time if that is shorter than `at_most`."""
        own = self._tools[name][0].timeout if name in self._tools else None
        return at_most if own is None else min(own, at_most)

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
        if spec.schema_json not in self._schemas:
            self._schemas[spec.schema_json] = _schema_of(spec.schema_json, is_trusted=True)
        return self._schemas[spec.schema_json]

    async def run(
        self,
        call: Call,
        *,
        timeout: timedelta = timedelta(seconds=30),
        caller: ToolCaller = NO_CALLER,
    ) -> Finished:
        """Runs a started call to its end, and returns its result; every failure is a result.

        The caller cancels the task after `timeout`; the tool's source may end earlier. Raises CancelledError alone, if
        the current task is cancelled.
        """
        context = _context(call, caller, timeout=timeout)
        began = time.monotonic()
        try:
            if call.tool not in self._tools:  # it was there when the call was decided on
                raise ToolError("The tool is gone; it did not run.")
            _, source = self._tools[call.tool]
            result = _checked(await source.call(call.tool, json.loads(call.arguments_json), context))
        except OutcomeUnknown as error:
            outcome = ToolOutcome.FAILED if call.tool_class.may_start_again else ToolOutcome.UNKNOWN
            result = replace(_failure(str(error)), outcome=outcome)
        except BaseException as error:
            if ends_task(error):
                raise
            result = self._failed(call, failure_of(error))
        duration = timedelta(seconds=time.monotonic() - began)
        return Finished(call_id=call.id, result=result, attempt=call.attempt, duration=duration)

    def reconciles(self, call: Call) -> bool:
        """Returns True if the source of the call's tool may tell what became of the call."""
        return self._reconciler_of(call) is not None

    async def reconcile(self, call: Call, *, caller: ToolCaller = NO_CALLER) -> Reconciled | StillRunning | None:
        """Returns what the source tells of a STARTED call, or None if no answer came; a later try may get one.

        A source that has no answers of this kind gives NO_ANSWER. Raises CancelledError alone.
        """
        source = self._reconciler_of(call)
        if source is None:
            return Reconciled(state=ReconciledState.NO_ANSWER)
        try:
            return await source.reconcile(call.tool, _context(call, caller))
        except CannotReconcile:
            return Reconciled(state=ReconciledState.NO_ANSWER)
        except BaseException as error:
            if ends_task(error):
                raise
            failure = failure_of(error)
            logger.warning(
                "the server of tool %s does not tell what became of a call (%s); it is requested again, then a person "
                "is",
                *(call.tool, failure.message or failure.kind),
                extra={"session": call.session_id, "turn": call.turn_id, "tool_call": call.id},
            )
            return None

    def _reconciler_of(self, call: Call) -> ReconcilingSource | None:
        """Returns the source that the call was started at, also if it lists the tool no longer."""
        for source in self._sources:
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


def timed_out(call: Call, timeout: timedelta) -> Finished:
    """Returns the result of a call whose tool did not finish in time."""
    message = f"The tool did not finish in {timeout.total_seconds():g} s; it may have taken effect."
    result = ToolResult(outcome=ToolOutcome.TIMED_OUT, result_json=_error(message))
    return Finished(call_id=call.id, result=result, attempt=call.attempt, duration=timeout)


def _schema_of(schema_json: str, *, is_trusted: bool) -> ArgumentsSchema:
    try:
        return ArgumentsSchema(json.loads(schema_json), is_trusted=is_trusted)
    except (ValueError, RecursionError):
        raise ToolValidationError("The tool's schema cannot be read.") from None


@lru_cache(maxsize=8)
def _client_schema(schema_json: str) -> ArgumentsSchema:
    """Returns the schema of a message's tool. It is kept for the calls of one answer: a thousand may have it."""
    return _schema_of(schema_json, is_trusted=False)


def _has(agent: Agent, spec: ToolSpec) -> bool:
    """Returns True if the agent may call the tool. No agent may call a FORBIDDEN one."""
    return agent.offers(spec.name) and spec.tool_class is not ToolClass.FORBIDDEN


def check_arguments_size(arguments_json: str) -> None:
    """Raises ToolValidationError if the arguments are larger than a call's may be."""
    if len(arguments_json.encode(errors="replace")) > ARGUMENTS_BYTES:
        raise ToolValidationError(f"The arguments are over {ARGUMENTS_BYTES} bytes; send less.")


def _checked(text: str) -> ToolResult:
    """Returns a source's result. Raises UnfitResult if it is over RESULT_BYTES."""
    if len(text.encode()) > RESULT_BYTES:
        raise UnfitResult(f"The result has more than {RESULT_BYTES} bytes.")
    return ToolResult(outcome=ToolOutcome.OK, result_json=text)


def _failure(message: str) -> ToolResult:
    """Returns a failed result with a message for the model; with another one if JSON cannot hold that."""
    try:
        text = result_text({"error": message})
    except UnfitResult as unfit:
        text = _error(str(unfit))
    return ToolResult(outcome=ToolOutcome.FAILED, result_json=text)


def _error(message: str) -> str:
    """Returns a failure as JSON text for the model."""
    return json.dumps({"error": message}, ensure_ascii=False)
