"""What Envoy adds to a short call: the same call straight to a replica and through Envoy, in turn."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
from grpc import aio

from tests.chaos import tenants
from tests.harness import Stubs
from tests.mesh.script import WORKER
from tests.mesh.stage import Stage
from turnkeeper.pb.v1 import session_pb2

PAIRS: Final = 500
UNCOUNTED: Final = 50


async def added(stage: Stage, *, pairs: int = PAIRS) -> Mapping[str, float]:
    """Returns milliseconds of `GetSession`: p50 and p99 straight, through Envoy, and their differences."""
    who = stage.caller(tenants.TENANTS[0])
    edge = grpc.ssl_channel_credentials(stage.ca.read_bytes())
    async with (
        aio.secure_channel(stage.replicas[0].address, stage.peer_credentials()) as straight,
        aio.secure_channel(stage.envoy.address, edge) as proxied,
    ):
        created = await Stubs(straight).sessions.CreateSession(
            session_pb2.CreateSessionRequest(agent=WORKER, request_id="latency"), metadata=who.metadata
        )
        request = session_pb2.GetSessionRequest(session_id=created.session.session_id)
        times: dict[str, list[float]] = {"straight": [], "proxied": []}
        methods = {"straight": Stubs(straight).sessions.GetSession, "proxied": Stubs(proxied).sessions.GetSession}
        for number in range(UNCOUNTED + pairs):
            for name, method in methods.items():
                took = await _timed(method, request, who.metadata)
                if number >= UNCOUNTED:
                    times[name].append(took)
    figures = {name: (statistics.median(took), percentile(took, 99)) for name, took in times.items()}
    shown = {
        f"{name}_p{share}_ms": value
        for name, pair in figures.items()
        for share, value in zip((50, 99), pair, strict=True)
    }
    shown |= {
        f"added_p{share}_ms": figures["proxied"][place] - figures["straight"][place]
        for place, share in enumerate((50, 99))
    }
    return {name: round(value, 2) for name, value in shown.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that so many per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share) // 100) - 1)]


async def _timed(method: Any, request: Any, metadata: Any) -> float:
    began = time.perf_counter()
    await method(request, metadata=metadata, timeout=10)
    return (time.perf_counter() - began) * 1000
