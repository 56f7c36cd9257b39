"""When a stream goes on by itself, where, and when it does not."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from time import monotonic

import grpc
import pytest

from turnkeeper_client import Client, ResumePolicy
from turnkeeper_client.errors import ClientClosed, SessionError, TransportError, UnknownEvent
from turnkeeper_client.pb.v1 import error_pb2
from turnkeeper_client.pb.v1.error_pb2 import SessionErrorCode, SessionErrorDetail
from turnkeeper_client.resume import REFUSALS
from turnkeeper_client.streams import EventStream
from turnkeeper_client_testing.events import (
    completed,
    delta,
    done,
    ended,
    started,
    summary,
    unknown,
    watch_response,
)
from turnkeeper_client_testing.server import QUICK, STAY, Pause, Refuse, Step, cut_off, refuse, stage

ROTATED = error_pb2.SESSION_ERROR_CODE_STREAM_ROTATED
DRAINING = error_pb2.SESSION_ERROR_CODE_SERVER_DRAINING
RATE_LIMIT = error_pb2.SESSION_ERROR_CODE_RATE_LIMIT_EXCEEDED
PASSING = [
    error_pb2.SESSION_ERROR_CODE_SLOW_CONSUMER,
    error_pb2.SESSION_ERROR_CODE_SERVICE_UNAVAILABLE,
    RATE_LIMIT,
    error_pb2.SESSION_ERROR_CODE_OVERLOADED,
    error_pb2.SESSION_ERROR_CODE_SESSION_CONTENDED,
]
MOMENT = timedelta(milliseconds=20)
FINAL = [code for code in SessionErrorCode.values() if code not in {0, ROTATED, DRAINING, *PASSING}]
BROKEN = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
]
UNHELPFUL = [
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
]
# So long that a test which waits for it fails.
SLOW = replace(QUICK, first_pause=timedelta(seconds=60), longest_pause=timedelta(seconds=60))


async def everything(stream: EventStream) -> list[int | str]:
    return summary([event async for event in stream])


async def test_a_cut_connection_goes_on_at_the_last_cursor() -> None:
    first: list[Step] = [
        watch_response(started(1), cursor="c1"),
        watch_response(delta(0, "Hel"), cursor="c2"),
        watch_response(delta(3, "lo"), cursor="c3"),
        STAY,
    ]
    second = [
        watch_response(delta(5, " you"), cursor="c4"),
        watch_response(completed(2, "Hello you"), done(3), cursor="c5"),
    ]
    async with stage(first, second) as on:
        got = []
        async for event in on.client.session("s1").follow():
            got.append(event)
            if event.content_delta.text == "lo":
                on.relay.cut()
        assert summary(got) == [1, "Hel", "lo", " you", 2, 3]
        assert [request.after for request in on.script.requests] == ["", "c3"]


async def test_what_comes_twice_is_dropped_and_a_straddling_delta_is_cut_on_its_bytes() -> None:
    first: list[Step] = [
        watch_response(started(1), delta(0, "grü"), cursor="c1"),
        Refuse(status=grpc.StatusCode.UNKNOWN),
    ]
    again: list[Step] = [
        watch_response(started(1), delta(0, "g"), delta(1, "rüß"), delta(6, "e"), completed(2, "grüße"), done(3))
    ]
    async with stage(first, again) as on:
        events = [event async for event in on.client.session("s1").follow()]
        assert summary(events) == [1, "grü", "ß", "e", 2, 3]
        assert [event.content_delta.offset for event in events[1:4]] == [0, 4, 6]


@pytest.mark.parametrize("code", [ROTATED, DRAINING])
async def test_a_planned_end_goes_on_at_once_with_its_cursor(code: SessionErrorCode.ValueType) -> None:
    first: list[Step] = [watch_response(started(1), cursor="c1"), cut_off(code, cursor="c9")]
    async with stage(first, [watch_response(done(2))], policy=SLOW) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert on.script.requests[1].after == "c9"


async def test_every_planned_end_of_a_long_stream_goes_on_at_once() -> None:
    hours: list[list[Step]] = [
        [watch_response(started(number), cursor=f"c{number}"), cut_off(ROTATED, cursor=f"c{number}")]
        for number in (1, 2, 3)
    ]
    async with stage(*hours, [watch_response(done(4))], policy=SLOW) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2, 3, 4]


async def test_planned_ends_without_anything_between_slow_down() -> None:
    patient = replace(QUICK, first_pause=timedelta(seconds=0.4), longest_pause=timedelta(seconds=0.4))
    end: list[Step] = [cut_off(ROTATED, cursor="c1")]
    async with stage(end, end, [watch_response(done(1))], policy=patient) as on:
        begun = monotonic()
        assert await everything(on.client.session("s1").follow()) == [1]
        assert monotonic() - begun >= 0.2


@pytest.mark.parametrize("code", PASSING)
async def test_a_passing_error_goes_on_at_the_last_cursor(code: SessionErrorCode.ValueType) -> None:
    first: list[Step] = [
        watch_response(started(1), cursor="c1"),
        cut_off(code, cursor="not for this", retry_after=MOMENT),
    ]
    async with stage(first, [watch_response(done(2))]) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert on.script.requests[1].after == "c1"


@pytest.mark.parametrize("code", PASSING)
async def test_a_passing_error_without_a_retry_after_of_its_own_is_waited_out(
    code: SessionErrorCode.ValueType,
) -> None:
    first: list[Step] = [watch_response(started(1), cursor="c1"), cut_off(code)]
    async with stage(first, [watch_response(done(2))]) as on:
        begun = monotonic()
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert monotonic() - begun >= 1


async def test_a_stream_without_a_response_goes_on_at_the_cursor_of_its_error() -> None:
    """A watch of what is new would miss what came in between if it began anew."""
    first: list[Step] = [cut_off(error_pb2.SESSION_ERROR_CODE_SERVICE_UNAVAILABLE, cursor="c1", retry_after=MOMENT)]
    async with stage(first, [watch_response(done(2))]) as on:
        assert await everything(on.client.session("s1").follow(live_only=True)) == [2]
        assert [request.WhichOneof("start") for request in on.script.requests] == ["live_only", "after"]
        assert on.script.requests[1].after == "c1"


@pytest.mark.parametrize(("wait", "policy"), [(None, SLOW), (MOMENT, QUICK)])
async def test_the_advice_decides_also_for_a_code_of_a_later_release(
    wait: timedelta | None, policy: ResumePolicy
) -> None:
    detail = SessionErrorDetail(
        code=SessionErrorCode.ValueType(777), cursor="c9", retry=error_pb2.RETRY_ADVICE_RESUME_STREAM
    )
    if wait is not None:
        detail.retry_after.FromTimedelta(wait)
    first: list[Step] = [watch_response(started(1)), Refuse(status=grpc.StatusCode.ABORTED, details=(detail,))]
    async with stage(first, [watch_response(done(2))], policy=policy) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert on.script.requests[1].after == "c9"


async def test_the_same_code_with_another_advice_is_final() -> None:
    detail = SessionErrorDetail(
        code=error_pb2.SESSION_ERROR_CODE_SERVICE_UNAVAILABLE, retry=error_pb2.RETRY_ADVICE_NEVER
    )
    detail.retry_after.FromTimedelta(MOMENT)
    final = Refuse(status=grpc.StatusCode.UNAVAILABLE, details=(detail,))
    async with stage([watch_response(started(1)), final], [watch_response(done(2))]) as on:
        with pytest.raises(SessionError):
            await everything(on.client.session("s1").follow())
        assert len(on.script.requests) == 1


@pytest.mark.parametrize("advises_as_unary", [True, False])
@pytest.mark.parametrize("code", sorted(REFUSALS))
async def test_a_stream_that_is_refused_is_opened_again_after_the_delays_that_it_was_given(
    code: SessionErrorCode.ValueType, advises_as_unary: bool
) -> None:
    """However long they are: a service that refuses is there, and the short patience is for one that is away."""
    policy = replace(QUICK, start_patience=timedelta(seconds=0.02), longest_pause=timedelta(seconds=0.01))
    refused: list[Step] = [(refuse if advises_as_unary else cut_off)(code, retry_after=timedelta(seconds=0.03))]
    async with stage(*[refused] * 3, [ended(done(2))], *[refused] * 2, [watch_response(done(2))], policy=policy) as on:
        begun = monotonic()
        assert await everything(on.client.session("s1").stream("Hello")) == [2]
        assert monotonic() - begun >= 0.09
        assert len({request.request_id for request in on.script.requests}) == 1
        assert await everything(on.client.session("s1").follow()) == [2]
        assert len(on.script.requests) == 7


async def test_a_stream_that_is_to_wait_longer_than_its_patience_is_refused_at_once() -> None:
    refused: list[Step] = [cut_off(error_pb2.SESSION_ERROR_CODE_OVERLOADED, retry_after=timedelta(seconds=60))]
    async with stage(refused, [ended(done(1))]) as on:
        with pytest.raises(SessionError) as raised:
            await everything(on.client.session("s1").stream("Hello"))
        assert raised.value.retry_after == timedelta(seconds=60)
        assert len(on.script.requests) == 1


async def test_a_stream_that_is_refused_for_long_raises_the_refusal_within_its_patience() -> None:
    policy = replace(QUICK, patience=timedelta(seconds=0.5))
    refused: list[Step] = [cut_off(error_pb2.SESSION_ERROR_CODE_OVERLOADED, retry_after=timedelta(seconds=0.2))]
    async with stage(*[refused] * 9, policy=policy) as on:
        with pytest.raises(SessionError) as raised:
            await everything(on.client.session("s1").stream("Hello"))
        assert raised.value.reason == "OVERLOADED"
        assert len(on.script.requests) in (2, 3)


async def test_a_rate_limit_is_waited_out_as_its_retry_after_asks() -> None:
    limited: list[Step] = [cut_off(RATE_LIMIT, retry_after=timedelta(seconds=0.5))]
    async with stage(limited, [watch_response(done(1))]) as on:
        begun = monotonic()
        assert await everything(on.client.session("s1").follow()) == [1]
        assert monotonic() - begun >= 0.5


@pytest.mark.parametrize("status", BROKEN)
async def test_a_status_without_our_details_is_a_broken_connection(status: grpc.StatusCode) -> None:
    first: list[Step] = [watch_response(started(1), cursor="c1"), Refuse(status=status)]
    async with stage(first, [watch_response(done(2))]) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert on.script.requests[1].after == "c1"


@pytest.mark.parametrize("code", FINAL)
async def test_any_other_error_of_the_service_is_final(code: SessionErrorCode.ValueType) -> None:
    async with stage([watch_response(started(1)), cut_off(code)], [watch_response(done(2))]) as on:
        with pytest.raises(SessionError) as raised:
            await everything(on.client.session("s1").follow())
        assert raised.value.code == code
        assert len(on.script.requests) == 1


@pytest.mark.parametrize("status", UNHELPFUL)
async def test_a_refusal_on_the_way_is_final(status: grpc.StatusCode) -> None:
    async with stage([Refuse(status=status)], [watch_response(done(1))]) as on:
        with pytest.raises(TransportError) as raised:
            await everything(on.client.session("s1").follow())
        assert raised.value.status is status
        assert len(on.script.requests) == 1


async def test_a_silent_stream_is_cancelled_and_resumed() -> None:
    policy = replace(QUICK, silence=timedelta(seconds=0.3))
    async with stage([watch_response(started(1), cursor="c1"), STAY], [watch_response(done(2))], policy=policy) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]
        assert on.script.requests[1].after == "c1"
        await on.script.caller_left()


async def test_a_stream_that_is_silent_from_its_start_is_tried_once_more() -> None:
    policy = replace(QUICK, silence=timedelta(seconds=0.3), start_patience=timedelta(seconds=0.1))
    async with stage([STAY], [watch_response(done(1))], policy=policy) as on:
        assert await everything(on.client.session("s1").follow()) == [1]


async def test_keep_alives_keep_a_stream_open() -> None:
    policy = replace(QUICK, silence=timedelta(seconds=0.4))
    beats = [step for number in range(8) for step in (Pause(0.1), watch_response(cursor=f"c{number}", through=number))]
    async with stage([*beats, watch_response(done(9))], policy=policy) as on:
        stream = on.client.session("s1").follow()
        batches = [batch async for batch in stream.batches()]
        assert [(batch.cursor, batch.through_sequence) for batch in batches[:8]] == [(f"c{n}", n) for n in range(8)]
        assert [summary(batch.events) for batch in batches] == [[]] * 8 + [[9]]
        assert len(on.script.requests) == 1


async def test_leaving_the_loop_closes_the_call_and_another_loop_loses_nothing() -> None:
    first: list[Step] = [
        watch_response(started(1), cursor="c1"),
        watch_response(delta(0, "a"), delta(1, "b"), delta(2, "c"), cursor="c2"),
        STAY,
    ]
    second = [
        watch_response(delta(0, "a"), delta(1, "b"), delta(2, "c"), cursor="c2"),
        watch_response(completed(2, "abc")),
    ]
    async with stage(first, second) as on:
        stream = on.client.session("s1").follow()
        async for event in stream:
            if event.content_delta.text == "b":
                break
        assert stream.cursor == "c1"
        await on.script.caller_left()
        assert await everything(stream) == ["c", 2]
        assert on.script.requests[1].after == "c1"


async def test_a_cursor_may_be_kept_with_the_last_event_of_its_batch() -> None:
    async with stage(
        [watch_response(started(1), delta(0, "a"), cursor="c1"), watch_response(done(2), cursor="c2")]
    ) as on:
        stream = on.client.session("s1").follow(after="c0")
        assert [stream.cursor async for _ in stream] == ["c0", "c1", "c2"]
        assert on.script.requests[0].after == "c0"


async def test_cancelling_the_reader_closes_the_call() -> None:
    async with stage([watch_response(started(1)), STAY]) as on:
        events = aiter(on.client.session("s1").follow())
        await anext(events)
        reader = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await on.script.caller_left()


async def test_an_unknown_event_that_may_be_ignored_is_skipped() -> None:
    async with stage([watch_response(started(1), unknown(2, ignorable=True), done(3))]) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 3]


async def test_an_unknown_event_that_must_not_be_ignored_stops_the_stream() -> None:
    async with stage(
        [watch_response(started(1), cursor="c1"), watch_response(unknown(2, ignorable=False), cursor="c2"), STAY]
    ) as on:
        stream = on.client.session("s1").follow()
        with pytest.raises(UnknownEvent) as raised:
            await everything(stream)
        assert raised.value.event.sequence == 2
        assert stream.cursor == "c1"
        await on.script.caller_left()


async def test_a_service_that_stays_away_is_given_up() -> None:
    policy = replace(QUICK, patience=timedelta(seconds=0.5))
    async with stage([watch_response(started(1), cursor="c1"), STAY], policy=policy) as on:
        begun = monotonic()
        stream = on.client.session("s1").follow()
        async with aclosing(aiter(stream)) as events:
            await anext(events)
            await on.server.stop(None)
            with pytest.raises(TransportError) as raised:
                await anext(events)
        assert raised.value.status is grpc.StatusCode.UNAVAILABLE
        assert stream.cursor == "c1"
        assert 0.5 < monotonic() - begun < 5


async def test_a_stream_that_had_begun_waits_longer_for_the_service() -> None:
    policy = replace(QUICK, start_patience=timedelta(seconds=0.1), longest_pause=timedelta(seconds=0.1))
    away: list[Step] = [Refuse(status=grpc.StatusCode.UNAVAILABLE)]
    async with stage([watch_response(started(1)), *away], *[away] * 8, [watch_response(done(2))], policy=policy) as on:
        assert await everything(on.client.session("s1").follow()) == [1, 2]


async def test_a_service_that_is_not_there_is_a_transport_error() -> None:
    policy = replace(QUICK, start_patience=timedelta(seconds=0.3))
    async with Client("127.0.0.1:1", resume=policy) as client:
        with pytest.raises(TransportError):
            await everything(client.session("s1").follow())


async def test_closing_the_client_ends_its_streams_with_an_error() -> None:
    async with (
        stage([watch_response(started(1)), STAY]) as on,
        aclosing(aiter(on.client.session("s1").follow())) as events,
    ):
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await on.client.close()
        with pytest.raises(ClientClosed):
            await waiting


async def test_every_start_of_a_watch() -> None:
    async with stage(*[[watch_response(caught_up=True)]] * 5) as on:
        session = on.client.session("s1")
        streams = [
            session.follow(),
            session.follow(after="c1", types=["turn_completed"], previews=False, turn_id="t1"),
            session.follow(after=7),
            session.follow(live_only=True),
            session.follow(until_caught_up=True),
        ]
        for stream in streams:
            assert not stream.caught_up
            assert await everything(stream) == []
            assert stream.caught_up
        starts = [(request.WhichOneof("start"), request.follow) for request in on.script.requests]
        expected = [(None, True), ("after", True), ("after_sequence", True), ("live_only", True), (None, False)]
        assert starts == expected
        assert on.script.requests[1].types == ["turn_completed"]
        assert not on.script.requests[1].previews
        assert on.script.requests[1].turn_id == "t1"
        assert on.script.requests[2].after_sequence == 7
