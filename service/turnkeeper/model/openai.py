"""A model on any OpenAI-compatible server, by the `openai` client."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, Self

import httpx2
import orjson

from turnkeeper.event_loop import off_loop
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.beside import origin_of
from turnkeeper.model.collected import body_of, may_wait
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_client import Provider, limit_field_of, new_client, secrets_of, server_of
from turnkeeper.model.openai_failure import (
    ReportedFailure,
    field_failure,
    openai_failures,
    sending_failures,
)
from turnkeeper.model.openai_request import is_large
from turnkeeper.model.openai_stream import read_text
from turnkeeper.model.read_pauses import ReadPauses
from turnkeeper.model.read_ticks import ReadTicks
from turnkeeper.model.repeated_calls import RepeatedCalls
from turnkeeper.model.request_plan import RequestPlan
from turnkeeper.model.request_shape import Refusals, RequestShape, first_needed
from turnkeeper.telemetry.redact import Redactor

MOST_REPEATS: Final = 2
"""Times that a call is repeated without what the server refuses, at most."""
LONGEST_SENTENCE: Final = 500
"""Characters of a server's own sentence that are logged."""
_PART_BYTES: Final = 256 * 1024
"""Bytes of a request's body that are sent at a time."""

logger = logging.getLogger(__name__)


class OpenAIModel:
    """Implements `Model`. One instance serves any number of calls at once.

    An answer counts only with a finish reason, then `[DONE]` or the orderly end of the body. Text and tool calls
    together may have `max_answer_bytes` (UTF-8); a larger answer is a failure, because half of it would be wrong.
    """

    @classmethod
    def connect(
        cls,
        provider: Provider,
        *,
        deadlines: Deadlines | None = None,
        max_answer_bytes: int = 200 * 1024,
        refusals: Refusals | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Returns a model at `provider`. Raises ValueError for an address, a key or a header that cannot be used.

        `refusals` is what is known of the fields that servers refuse; without it, this model learns alone.
        """
        deadlines = deadlines or Deadlines()
        return cls(
            provider,
            new_client(provider, connect=deadlines.connect, now=now),
            deadlines=deadlines,
            max_answer_bytes=max_answer_bytes,
            refusals=refusals or Refusals(),
            now=now,
        )

    def __init__(
        self,
        provider: Provider,
        client: RepeatedCalls,
        *,
        deadlines: Deadlines,
        max_answer_bytes: int,
        refusals: Refusals,
        now: Callable[[], datetime],
    ) -> None:
        """See `connect`."""
        self._client = client
        self.server = server_of(provider)
        self._address = f"{self.server[0]}:{self.server[1]}"
        self._shape = RequestShape(limit_field=limit_field_of(provider), omitted=frozenset(provider.omit))
        self._extra: dict[str, object] = orjson.loads(provider.extra_body_json or "{}")
        self._redact = Redactor(secrets_of(provider))
        self._deadlines = deadlines
        self._max_answer_bytes = max_answer_bytes
        self._refusals = refusals
        self._now = now
        self._ticks = ReadTicks()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | ModelAnswer]:
        """Yields deltas, then the answer; see `Model.stream`.

        A call that is refused for a field which it can do without is repeated without it, and one that is refused for
        its messages with other forms of them, MOST_REPEATS times at most.
        """
        watch = DeadlineWatch(self._deadlines, loop=asyncio.get_running_loop())
        large = is_large(request)
        plan = RequestPlan(
            request,
            shape=self._shape,
            known=self._refusals.of(self._address, request.model),
            origin=origin_of(self.server, request.model),
            extra=self._extra,
        )
        with watch:
            for repeats_left in reversed(range(MOST_REPEATS + 1)):
                body = await off_loop(plan.body, large=large)
                answered = False
                try:
                    async with aclosing(self._answer(request, body, watch)) as items:
                        async for item in items:
                            if not answered:
                                answered = True
                                self._refusals.learn(self._address, request.model, plan.learnt())
                            yield item
                    return
                except ReportedFailure as failed:
                    before = plan.refused
                    again = not answered and plan.changes_after(failed)
                    if plan.refused != before:
                        # It got past the fields that were left out before: they are what it refuses.
                        self._refusals.learn(self._address, request.model, frozenset(before))
                    if needed := first_needed(plan.refused):
                        raise self._logged(field_failure(failed, needed)) from None
                    if not again or not repeats_left:
                        raise self._logged(failed) from None

    async def close(self) -> None:
        """Closes every connection."""
        await self._client.close()

    async def _answer(
        self, request: ModelRequest, fields: Mapping[str, object], watch: DeadlineWatch
    ) -> AsyncGenerator[str | ModelAnswer]:
        """Makes one request; yields deltas, then the answer."""
        origin = origin_of(self.server, request.model)
        reader = AnswerReader(request, max_answer_bytes=self._max_answer_bytes, origin=origin)
        with openai_failures():
            content = await off_loop(partial(orjson.dumps, fields), large=is_large(request))
            async with self._response(content, watch) as response:
                body = body_of(response)
                patience = request.patience if may_wait(body) else lambda: 0.0
                pauses = ReadPauses(patience, now=asyncio.get_running_loop().time)
                async for text in read_text(body, reader, watch, pauses, show=request.show, ticks=self._ticks):
                    yield text
        yield reader.answer()

    @asynccontextmanager
    async def _response(self, body: bytes, watch: DeadlineWatch) -> AsyncIterator[httpx2.Response]:
        """Sends the request and yields the response, whose body is not read yet. Leaving the block ends the call."""
        post = self._client.post(body if len(body) <= _PART_BYTES else _InParts(body), size=len(body))
        with sending_failures():
            response = await watch.wait(post)
        try:
            yield response
        finally:
            await response.aclose()

    def _logged(self, failed: ReportedFailure) -> ModelFailure:
        """Logs the server's own sentence, and returns the failure with the id of that line in the log."""
        log_id = secrets.token_hex(4)
        sentence = self._redact(failed.report.sentence)
        logger.warning(
            "model call failed: the server %s reported %s (HTTP status %s, log id %s): %s",
            *(self._address, failed.detail.metadata["reason"], failed.http_status or 200, log_id),
            sentence if len(sentence) <= LONGEST_SENTENCE else f"{sentence[:LONGEST_SENTENCE]}…",
        )
        detail = replace(
            failed.detail,
            message=f"{failed.detail.message} Its own words are in the log under {log_id}.",
            metadata={**failed.detail.metadata, "log_id": log_id},
        )
        return ModelFailure(
            detail,
            retryable=failed.retryable,
            retry_after=failed.retry_after,
            repeated_once=failed.repeated_once,
        )


class _InParts:
    """A long body in parts, so that sending it does not delay the other turns. It can be sent again."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        for start in range(0, len(self._body), _PART_BYTES):
            yield self._body[start : start + _PART_BYTES]
