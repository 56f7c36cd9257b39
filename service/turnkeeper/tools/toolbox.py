"""Finds tools by name, checks arguments, and runs calls within a time and a size. Permission is the policy's task."""

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import jsonschema

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.tool import CLIENT, Call, ClientTool, ToolOutcome, ToolResult, ToolSpec, canonical_json
from turnkeeper.errors import AgentConfigError, ToolValidationError
from turnkeeper.tools import untrusted_schema
from turnkeeper.tools.contract import ToolContext, ToolError, ToolSource

RESULT_BYTES = 64 * 1024
"""The largest result as JSON text in UTF-8."""
ARGUMENTS_BYTES = 64 * 1024
"""The largest arguments as JSON text in UTF-8."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A tool call that this owner ran to its result."""

    call_id: str
    result: ToolResult
    duration: timedelta
    """From start to result."""


class Toolbox:
    """The tools of all sources, by name."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        """Raises AgentConfigError if two sources have a tool of one name."""
        self._tools: dict[str, tuple[ToolSpec, ToolSource]] = {}
        for source in sources:
            for spec in source.specs():
                if spec.name in self._tools:
                    raise AgentConfigError(f"Two sources have a tool named {spec.name}; rename one.")
                self._tools[spec.name] = (spec, source)

    def offered(self, agent: Agent, *, clients: Sequence[ClientTool] = ()) -> tuple[ToolSpec, ...]:
        """Returns the agent's tools by name, then those that the turn's client runs."""
        theirs = {tool.name for tool in clients}
        own = (spec for name, (spec, _) in sorted(self._tools.items()) if agent.offers(name) and name not in theirs)
        return (*own, *(tool.spec for tool in clients))

    def find(self, agent: Agent, name: str, *, clients: Sequence[ClientTool] = ()) -> ToolSpec | None:
        """Returns the tool, or None if neither the agent nor the turn's client has it.

        A client's tool counts first: a tool of its name may have been installed after the message was accepted.
        """
        for tool in clients:
            if tool.name == name:
                return tool.spec
        if name not in self._tools or not agent.offers(name):
            return None
        return self._tools[name][0]

    def source_of(self, name: str) -> str:
        """Returns the name of the source that an installed tool comes from."""
        return self._tools[name][0].source

    def check(self, spec: ToolSpec, arguments_json: str) -> str:
        """Returns the arguments as canonical JSON. Raises ToolValidationError with a message for the model."""
        if len(arguments_json.encode(errors="replace")) > ARGUMENTS_BYTES:
            raise ToolValidationError(f"The arguments are over {ARGUMENTS_BYTES} bytes; send less.")
        try:
            canonical = canonical_json(arguments_json or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolValidationError(f"The arguments are not JSON: {error}") from error
        schema, arguments = json.loads(spec.schema_json), json.loads(canonical)
        if spec.source == CLIENT:
            problem = untrusted_schema.arguments_problem(schema, arguments)
        else:
            problem = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(arguments)), None)
        if problem is not None:
            where = "/".join(str(part) for part in problem.absolute_path) or "the arguments"
            raise ToolValidationError(f"{where}: {problem.message[:500]}")
        return canonical

    async def run(self, call: Call, *, timeout: timedelta) -> Finished:
        """Runs a started call and returns its result; every failure is a result. Only a cancellation returns none."""
        _, source = self._tools[call.tool]
        context = ToolContext(
            key=call.key,
            tenant=call.tenant,
            session_id=call.session_id,
            turn_id=call.turn_id,
            tool_call_id=call.id,
        )
        began = time.monotonic()
        result = await _outcome(source, call, context, timeout)
        return Finished(call_id=call.id, result=result, duration=timedelta(seconds=time.monotonic() - began))


async def _outcome(source: ToolSource, call: Call, context: ToolContext, timeout: timedelta) -> ToolResult:
    """Runs the call and returns its result. Raises CancelledError alone, if the current task is cancelled."""
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            value = await source.call(call.tool, json.loads(call.arguments_json), context)
        return _capped(value)
    except ToolError as error:
        return _capped({"error": str(error)}, ToolOutcome.FAILED)
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # whatever a tool raises is its own failure
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        if limit.expired():
            message = f"The tool did not finish in {timeout.total_seconds():g} s; it may have taken effect."
            return ToolResult(outcome=ToolOutcome.TIMED_OUT, result_json=_error(message))
        logger.warning(
            "tool %s raised %s; the model receives a failed result",
            call.tool,
            type(error).__name__,
            extra={"session": call.session_id},
        )
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(f"The tool failed ({type(error).__name__})."))


def _is_cancelled() -> bool:
    """Returns True if the current task was cancelled; otherwise the tool itself raised the CancelledError."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _capped(value: object, outcome: ToolOutcome = ToolOutcome.OK) -> ToolResult:
    """Returns the value as a result, or a failed result if JSON cannot hold it or it is over RESULT_BYTES."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError):
        message = "The tool returned something that JSON cannot hold."
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(message))
    if size > RESULT_BYTES:
        message = f"The result has {size} bytes; at most {RESULT_BYTES} are passed on. Ask for less."
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(message))
    return ToolResult(outcome=outcome, result_json=text)


def _error(message: str) -> str:
    """Returns a failure as JSON text for the model."""
    return json.dumps({"error": message}, ensure_ascii=False)
