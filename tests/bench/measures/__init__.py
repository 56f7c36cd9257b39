"""The measures, in the order in which they are run."""

from tests.bench.bench import Measure
from tests.bench.measures import first_text, turns

MEASURES: tuple[Measure, ...] = (*turns.MEASURES, *first_text.MEASURES)
