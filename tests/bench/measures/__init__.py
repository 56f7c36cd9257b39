"""The measures, in the order in which they are run."""

from tests.bench.bench import Measure
from tests.bench.measures import (
    agents_sdk,
    audit,
    first_text,
    growth,
    identity,
    idle,
    inbox,
    latency,
    live_streams,
    memory_attack,
    overload,
    policy,
    renewals,
    storage,
    tenants,
    turns,
    variants,
    watchers,
)

MEASURES: tuple[Measure, ...] = (
    *turns.MEASURES,
    *first_text.MEASURES,
    *agents_sdk.MEASURES,
    *live_streams.MEASURES,
    *overload.MEASURES,
    *memory_attack.MEASURES,
    *tenants.MEASURES,
    *watchers.MEASURES,
    *inbox.MEASURES,
    *latency.MEASURES,
    *renewals.MEASURES,
    *growth.MEASURES,
    *variants.MEASURES,
    *identity.MEASURES,
    *policy.MEASURES,
    *audit.MEASURES,
    *idle.MEASURES,
    *storage.MEASURES,
)
