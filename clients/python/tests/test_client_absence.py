"""A stream tells for how long the service has been away."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta

import grpc

from turnkeeper_client_testing.events import done, started, summary, watch_response
from turnkeeper_client_testing.server import QUICK, Refuse, Step, stage

MOMENT = timedelta(milliseconds=20)


async def test_a_stream_tells_for_how_long_the_service_is_away() -> None:
    broken = Refuse(status=grpc.StatusCode.UNAVAILABLE)
    first: list[Step] = [watch_response(started(1), cursor="c1"), broken]
    third: list[Step] = [watch_response(done(2), cursor="c2")]
    async with stage(first, [broken], third, policy=replace(QUICK, first_pause=MOMENT * 5)) as on:
        stream = on.client.session("s1").follow()
        times = []
        async with aclosing(aiter(stream)) as events:
            assert summary([await anext(events)])
            assert stream.away_for == timedelta()
            following = asyncio.ensure_future(anext(events))
            while not following.done():
                times.append(stream.away_for)
                await asyncio.sleep(0.005)
            await following
            assert stream.away_for == timedelta()
    away = [time for time in times if time]
    assert away == sorted(away)
    assert away[-1] > MOMENT * 5, "both pauses count as one absence"
