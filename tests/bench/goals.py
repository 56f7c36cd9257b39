"""The project's goals, by the names of rows. A missed goal is reported; the run does not fail."""

from collections.abc import Mapping
from typing import Final

from tests.bench.figures import Goal

_BEYOND_CAPACITY: Final[Mapping[str, Goal]] = {
    "goodput": Goal(0.85, of="ratio", at_most=False),
    "reads.answered": Goal(99, of="value", at_most=False),
    "reads.p99": Goal(250, of="value"),
    "cancelled": Goal(0, of="value"),
    "bare": Goal(0, of="value"),
    "leases_lost": Goal(0, of="value"),
    "memory": Goal(1.3, of="ratio"),
    "recovery": Goal(5, of="value"),
}
"""What holds at 3 and 5 times the capacity."""

GOALS: Final[Mapping[str, Goal]] = {
    "turn.cpu.16": Goal(0.6, of="ratio"),
    "turn.cpu.16.all": Goal(0.9, of="ratio"),
    "turn.cpu.1": Goal(0.9, of="ratio"),
    "watch.100.cpu": Goal(1.2, of="ratio"),
    "watch.100.above": Goal(1.2, of="ratio"),
    "watch.100.paced.cpu": Goal(1.2, of="ratio"),
    "watch.100.paced.above": Goal(1.2, of="ratio"),
    "replay.events": Goal(0.5, of="ratio", at_most=False),
    "deliver.here.p50": Goal(5, of="value"),
    "deliver.there.p50": Goal(25, of="value"),
    "growth.1000": Goal(1.3, of="ratio"),
    "telemetry.prometheus": Goal(1.05, of="ratio"),
    "telemetry.otlp": Goal(1.05, of="ratio"),
    "identity.jwt": Goal(100, of="value"),
    "identity.mtls": Goal(100, of="value"),
    "policy.call": Goal(100, of="value"),
    "tools.200": Goal(0.5, of="value"),
    "tool.grpc.above": Goal(1.0, of="value"),
    "audit.turns": Goal(0.97, of="ratio", at_most=False),
    "inbox.100.p99": Goal(50, of="value"),
    "inbox.2000.p99": Goal(100, of="value"),
    "idle.stream.above": Goal(8, of="value"),
    "idle.session": Goal(0.25, of="value"),
    "idle.waiting": Goal(0.25, of="value"),
    "agents.turns": Goal(5, of="ratio", at_most=False),
    "first_text.p50": Goal(5.0, of="value"),
    "first_text.p99": Goal(25.0, of="value"),
    "live.64.256": Goal(2.7, of="ratio", at_most=False),
    "live.64.256.F7": Goal(0.8, of="ratio", at_most=False),
    "live.64.64": Goal(1.7, of="ratio", at_most=False),
    "live.64.256.interval_0": Goal(1.5, of="ratio", at_most=False),
    "live.64.64.late_p99": Goal(80, of="value"),
    "live.64.256.late_p99": Goal(80, of="value"),
    **{f"overload.{step}.{name}": goal for step in ("3", "5") for name, goal in _BEYOND_CAPACITY.items()},
    **{f"overload.slow.3.{name}": goal for name, goal in _BEYOND_CAPACITY.items()},
    "overload.drain.seconds": Goal(35, of="value"),  # --drain-delay and --drain-grace
    "overload.drain.status": Goal(0, of="value"),
    "overload.open.refused": Goal(0, of="value"),
    "overload.open.completed": Goal(100, of="value", at_most=False),
    "overload.open.leases_lost": Goal(0, of="value"),
    "tenants.p99.above": Goal(20, of="value"),
    "tenants.goodput": Goal(0.97, of="ratio", at_most=False),
    "tenants.again": Goal(99, of="value", at_most=False),
    "tenants.refusals.memory": Goal(5, of="value"),
    "attack.bodies.budget": Goal(1, of="ratio"),
    "attack.bodies.reads.p99": Goal(250, of="value"),
    "attack.bodies.after": Goal(1.3, of="ratio"),
    "attack.watchers.up": Goal(1, of="ratio", at_most=False),
    "attack.watchers.got": Goal(1, of="ratio", at_most=False),
    "attack.callers.unavailable": Goal(0, of="value"),
    "attack.callers.reads.p99": Goal(25, of="value"),
}
