"""Whatever a model raises is the model's failure: nothing else leaves a model call."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import StatusCode

from tests.builders import AGENT, a_session_key, a_turn
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.codes import Code
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import FinishReason, Usage
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.model.contract import Model, ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason, failure
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.tools.toolbox import Toolbox

ANSWER = ModelAnswer(text="so", tool_requests=(), finish_reason=FinishReason.STOP, usage=Usage(), model="m")


class RaisingModel:
    """Writes a word, then raises; without an error it ends."""

    server = ("127.0.0.1", 80)

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        yield "so"
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        pass


async def call(model_of: Callable[[Agent], Model]) -> ModelAnswer:
    caller = ModelCaller(
        model_of, toolbox=Toolbox([]), spans=Traces().spans, metrics=Metrics(NoOpMeterProvider(), provider="openai")
    )
    preview = Feed().begin_preview(turn_id="t", message_id="m", attempt=1)
    return await caller.call(AGENT, a_turn(a_session_key()), (), preview)


@pytest.mark.parametrize("error", [RecursionError("deep"), ValueError("a secret"), TypeError(), MemoryError(), None])
async def test_an_unforeseen_error_is_a_failure_without_its_text(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ModelFailure) as raised:
        await call(lambda _: RaisingModel(error))
    detail = raised.value.detail
    assert (detail.code, detail.metadata["reason"]) == (Code.LLM_API_ERROR, "CALL_DEFECT")
    assert detail.metadata["cause"] == type(error or TypeError()).__name__
    assert "secret" not in str(raised.value)
    assert "failed by a defect" in caplog.text


async def test_a_failure_of_the_model_stays_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelFailure) as raised:
        await call(lambda _: RaisingModel(failure(Reason.RATE_LIMIT)))
    assert raised.value.detail.code is Code.LLM_RATE_LIMIT
    assert not caplog.records


async def test_an_agent_whose_address_no_longer_works_is_its_operators_to_change() -> None:
    def model_of(agent: Agent) -> Model:
        raise ValueError(f"the address of {agent.name} cannot be used")

    with pytest.raises(ModelFailure) as raised:
        await call(model_of)
    assert raised.value.detail.code is Code.AGENT_CONFIG_ERROR


class SilentModel:
    """Accepts the call, and never answers."""

    server = ("127.0.0.1", 80)

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        self.called.set()
        await asyncio.Event().wait()
        yield ANSWER

    async def close(self) -> None:
        pass


async def test_a_call_that_is_cancelled_is_measured_like_any_other() -> None:
    model, meters, traces = SilentModel(), Meters(), Traces()
    caller = ModelCaller(lambda _: model, toolbox=Toolbox([]), spans=traces.spans, metrics=meters.metrics)
    preview = Feed().begin_preview(turn_id="t", message_id="m", attempt=1)
    running = asyncio.create_task(caller.call(AGENT, a_turn(a_session_key()), (), preview))
    await model.called.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    (labels,) = meters.points("gen_ai.client.operation.duration")
    assert dict(labels)["error.type"] == "CANCELLED"
    (span,) = traces.exporter.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET
