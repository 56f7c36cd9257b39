"""The services that every run of a turn uses."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from turnkeeper.admission.memory import MemoryBudget, MemoryPart
from turnkeeper.domain.turn import RetryPolicy
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.policy.policies import Policies
from turnkeeper.store.contract import Leases, SessionLog
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """One on every replica, shared by all of its runs."""

    store: SessionLog
    leases: Leases
    log_writer: LogWriter
    session_cache: SessionCache
    feeds: Feeds
    agents: AgentVersions
    toolbox: Toolbox
    policies: Policies
    model_caller: ModelCaller
    metrics: Metrics
    spans: Spans
    retries: RetryPolicy
    """For calls to models that failed."""
    jitter: Callable[[], float]
    """Returns a random number from 0 to 1."""
    answer_time: timedelta = timedelta(minutes=10)
    """How long a model's whole answer may take. Models watch this deadline; runs do for those that do not."""
    outcome_patience: timedelta = timedelta(seconds=30)
    """How long a new owner waits for the result of a call that a lost owner started and that must not run twice."""
    detached: set[asyncio.Task[Any]] = field(default_factory=set)
    """Cancelled tools and model calls that did not end in time: referenced here until they do. Nothing awaits them."""
    memory: MemoryPart = field(default_factory=lambda: MemoryBudget().part("turns"))
    """Counts what runs hold: see TURN_BYTES, and the requests of models."""
    add_to_changes: Callable[[UnitOfWork], None] = lambda _: None
    """Adds to an owner's changes what a replica of a newer schema stores with them."""
