"""The measures, in the order in which they are run."""

from tests.bench.bench import Measure
from tests.bench.measures import agents_sdk, first_text, idle, turns, watchers

MEASURES: tuple[Measure, ...] = (
    *turns.MEASURES,
    *first_text.MEASURES,
    *agents_sdk.MEASURES,
    *watchers.MEASURES,
    *idle.MEASURES,
)
