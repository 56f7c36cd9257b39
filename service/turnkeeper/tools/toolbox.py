"""Names → tools: validation, time, size. It decides nothing about permission; the turn's policy does."""

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
from turnkeeper.tools import untrusted_schema as client_schemas
from turnkeeper.tools.contract import ToolContext, ToolError, ToolSource

RESULT_BYTES = 64 * 1024
ARGUMENTS_BYTES = 64 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A tool call that this owner ran."""

    call_id: str
    result: ToolResult
    duration: timedelta


class Toolbox:
    """Every tool of every source, by name."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        """Raises AgentConfigError when two sources have a tool of one name."""
        self._tools: dict[str, tuple[ToolSpec, ToolSource]] = {}
        for source in sources:
            for spec in source.specs():
                if spec.name in self._tools:
                    raise AgentConfigError(f"Two sources have a tool named {spec.name}; rename one.")
                self._tools[spec.name] = (spec, source)

    def offered(self, agent: Agent, *, clients: Sequence[ClientTool] = ()) -> tuple[ToolSpec, ...]:
        """The agent's tools, then those that the turn's client runs."""
        brought = {tool.name for tool in clients}
        own = (spec for name, (spec, _) in sorted(self._tools.items()) if agent.offers(name) and name not in brought)
        return (*own, *(tool.spec for tool in clients))

    def find(self, agent: Agent, name: str, *, clients: Sequence[ClientTool] = ()) -> ToolSpec | None:
        """The tool, when the agent or the turn's client has it: an unknown tool is not callable.

        A client's tool stays the client's, also where one of its name was installed after its message was accepted.
        """
        for tool in clients:
            if tool.name == name:
                return tool.spec
        if name not in self._tools or not agent.offers(name):
            return None
        return self._tools[name][0]

    def check(self, spec: ToolSpec, arguments_json: str) -> str:
        """The arguments as canonical JSON. Raises ToolValidationError, with words for the model."""
        if len(arguments_json.encode(errors="replace")) > ARGUMENTS_BYTES:
            raise ToolValidationError(f"The arguments are over {ARGUMENTS_BYTES} bytes; send less.")
        try:
            canonical = canonical_json(arguments_json or "{}")
        except (ValueError, RecursionError) as error:
            raise ToolValidationError(f"The arguments are not JSON: {error}") from error
        schema, arguments = json.loads(spec.schema_json), json.loads(canonical)
        if spec.source == CLIENT:
            problem = client_schemas.misfit(schema, arguments)
        else:
            problem = next(iter(jsonschema.Draft202012Validator(schema).iter_errors(arguments)), None)
        if problem is not None:
            where = "/".join(str(part) for part in problem.absolute_path) or "the arguments"
            raise ToolValidationError(f"{where}: {problem.message[:500]}")
        return canonical

    async def run(self, call: Call, *, timeout: timedelta) -> Finished:
        """Run a started call to its result; every failure is a result. Only a cancellation leaves without one."""
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
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            value = await source.call(call.tool, json.loads(call.arguments_json), context)
        return _capped(value)
    except ToolError as error:
        return _capped({"error": str(error)}, ToolOutcome.FAILED)
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # whatever a tool raises is its failure, not ours
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        if limit.expired():
            told = f"The tool did not finish in {timeout.total_seconds():g} s; it may have taken effect."
            return ToolResult(outcome=ToolOutcome.TIMED_OUT, result_json=_error(told))
        logger.warning("tool %s raised %s", call.tool, type(error).__name__, extra={"session": call.session_id})
        told = f"The tool failed ({type(error).__name__})."
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(told))


def _is_cancelled() -> bool:
    """It is our own task that is to end; otherwise the cancellation leaked from inside the tool."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _capped(value: object, outcome: ToolOutcome = ToolOutcome.OK) -> ToolResult:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError):
        told = "The tool returned something that JSON cannot hold."
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(told))
    if size > RESULT_BYTES:
        told = f"The result has {size} bytes; at most {RESULT_BYTES} are passed on. Ask for less."
        return ToolResult(outcome=ToolOutcome.FAILED, result_json=_error(told))
    return ToolResult(outcome=outcome, result_json=text)


def _error(message: str) -> str:
    return json.dumps({"error": message}, ensure_ascii=False)
