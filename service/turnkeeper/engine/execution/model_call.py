"""One call to a turn's model: the request, the streamed answer, the telemetry."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import Message, Usage
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.execution.span_content import input_json, output_json
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.faults import fault
from turnkeeper.isolation import ends_task
from turnkeeper.model.contract import Model, ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason, failure
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.open_spans import ChatSpan
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Toolbox

logger = logging.getLogger(__name__)


class ModelCaller:
    """Calls the models of agents."""

    def __init__(self, model_of: Callable[[Agent], Model], *, toolbox: Toolbox, spans: Spans, metrics: Metrics) -> None:
        self._model_of = model_of
        self._toolbox = toolbox
        self._spans = spans
        self._metrics = metrics

    async def call(self, agent: Agent, turn: Turn, messages: tuple[Message, ...], preview: Preview) -> ModelAnswer:
        """Returns the model's whole answer. Until then, adds its text to `preview` as it arrives.

        Raises ModelFailure if the call gives no answer, and nothing else: what else a model raises is its own failure.
        Once the preview is closed, the owner no longer waits for the answer: ends at the next item of the stream.
        """
        request = ModelRequest(
            model=agent.model,
            messages=messages,
            tools=self._toolbox.offered(agent, clients=turn.options.client_tools),
            max_output_tokens=_lower_limit(agent.limits.max_output_tokens, turn.options.max_output_tokens) or None,
            temperature=agent.temperature,
            response_schema_json=turn.options.response_schema_json,
            patience=preview.patience,
            show=preview.append_unless_closed,
        )
        try:
            model = self._model_of(agent)
        except ValueError:  # a pinned version of the agent, whose address or key no longer works
            raise failure(Reason.BAD_PROVIDER) from None
        began = time.monotonic()
        with self._spans.chat(
            agent.model,
            server=model.server,
            session_id=turn.session_id,
            max_output_tokens=request.max_output_tokens,
            temperature=agent.temperature,
        ) as span:
            if span.records_content:
                span.content(input_json=input_json(messages))
            usage = Usage()
            try:
                answer = await self._consume(model, request, preview, span, began)
                usage = answer.usage
            except BaseException as error:  # whatever a model raises is its own failure
                if ends_task(error):
                    span.raised(error)
                    raise
                failed = _failure_of(error, turn, awaited=not preview.closed)
                span.failed(failed.detail.code.name)
                raise failed from None
            finally:
                self._metrics.model_finished(
                    agent.model,
                    server=model.server,
                    seconds=time.monotonic() - began,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    error_type=span.error,
                )
            span.answered(
                answer.model,
                finish_reason=answer.finish_reason.value,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
            )
            if span.records_content:
                span.content(output_json=output_json(answer))
        return answer

    async def _consume(
        self, model: Model, request: ModelRequest, preview: Preview, span: ChatSpan, began: float
    ) -> ModelAnswer:
        """Reads the model's stream to its end. Raises ModelFailure, and TypeError if the stream has no answer."""
        answer: ModelAnswer | None = None
        first = True
        async with aclosing(model.stream(request)) as stream:  # type: ignore[type-var]
            async for item in stream:
                if preview.closed:
                    raise asyncio.CancelledError  # once more: the stream swallowed the first one
                if first:
                    first = False
                    fault("turn.model.first_delta")
                    seconds = time.monotonic() - began
                    span.first_chunk(seconds)
                    self._metrics.first_chunk(request.model, server=model.server, seconds=seconds)
                if isinstance(item, str):
                    preview.append(item)
                else:
                    answer = item
        if answer is None:
            raise TypeError("a model's stream ended with neither an answer nor a failure")
        return answer


def _failure_of(error: BaseException, turn: Turn, *, awaited: bool) -> ModelFailure:
    """Returns the failure that a model raised. Any other error is logged, and its text goes no further.

    Nothing is logged unless the call is `awaited`: what one that was left behind raises counts for nothing.
    """
    if isinstance(error, ModelFailure):
        return error
    if not awaited:
        return failure(Reason.CALL_DEFECT, cause=type(error).__name__)
    logger.error(
        "a model call of agent %s failed by a defect: it counts as LLM_API_ERROR, and is tried once more at most",
        turn.agent,
        exc_info=error,
        extra={"session": turn.session_id, "turn": turn.id},
    )
    return failure(Reason.CALL_DEFECT, cause=type(error).__name__)


def _lower_limit(configured: int, requested: int) -> int:
    """Returns the lower of the two limits; 0 means no limit. A request can only lower the agent's."""
    return min(configured, requested) if configured and requested else configured or requested
