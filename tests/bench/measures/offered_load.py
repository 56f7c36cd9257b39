"""The arithmetic of offered load: goodput, refusals, and how soon the service is as before."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench import cores
from tests.bench.figures import Row, row
from tests.bench.jobs.offered import COMPLETED, IN_TIME, OK, PATIENCE, Record
from tests.chaos.figures import quantile

SERVED = 0.99
"""The share of calls that must be good for a rate to be served."""
LEAST_WATCHED = 3.0
"""Seconds that must be seen to be served before the service counts as recovered."""
BARE_CANCELLED = "CANCELLED.-.bare"
OUT_OF_PATIENCE = "DEADLINE_EXCEEDED.-.bare"
"""The caller's own deadline: no refusal."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of a step: settling and counted at its rate, then recovering at RECOVERING of capacity."""

    settling: float = 10.0
    counted: float = 20.0
    recovering: float = 20.0

    @property
    def end(self) -> float:
        """When the overload ends, in seconds after the step's first call."""
        return self.settling + self.counted


@dataclass(frozen=True, slots=True)
class Step:
    """What a step at a rate has shown; `use` is the share of each core in the counted seconds, memory is in MiB."""

    phases: Phases
    turns: Sequence[Record]
    reads: Sequence[Record]
    memory: float
    leases_lost: int
    unfinished: int
    use: Sequence[float]
    others: float = 0.0
    """The share of the servers' core that other programs had in the counted seconds."""

    @property
    def goodput(self) -> float:
        """Turns a second that were COMPLETED in time, of those that were intended in the counted seconds."""
        return sum(map(is_good, self._counted(self.turns))) / self.phases.counted

    @property
    def answered(self) -> float:
        """The share of the counted seconds' reads that were answered."""
        reads = self._counted(self.reads)
        return sum(end == OK for _, _, end in reads) / max(1, len(reads))

    @property
    def reads_p99_ms(self) -> float:
        """The p99 of the answered reads, from their intended times; a caller's patience if none was answered."""
        return 1000 * (quantile([took for _, took, end in self._counted(self.reads) if end == OK], 0.99) or PATIENCE)

    @property
    def ends(self) -> Counter[str]:
        """How the turns that were intended before the overload's end have ended."""
        return Counter(end for at, _, end in self.turns if at < self.phases.end)

    @property
    def recovery(self) -> float | None:
        """Seconds from the overload's end until turns are served again; None if they are not while it is watched."""
        after = [record for record in self.turns if record[0] >= self.phases.end]
        good = 0
        since: float | None = None
        for number, record in enumerate(reversed(after), 1):
            good += is_good(record)
            watched = self.phases.end + self.phases.recovering - record[0]
            if watched >= LEAST_WATCHED and good >= SERVED * number:
                since = record[0] - self.phases.end
        return since

    def _counted(self, records: Sequence[Record]) -> list[Record]:
        return [record for record in records if self.phases.settling <= record[0] < self.phases.end]


def is_good(record: Record) -> bool:
    """Returns whether the turn was COMPLETED in time."""
    _, took, end = record
    return end == COMPLETED and took <= IN_TIME


def is_served(records: Sequence[Record]) -> bool:
    """Returns whether so many of the calls are good that their rate counts as served."""
    return bool(records) and sum(map(is_good, records)) >= SERVED * len(records)


def refusals(ends: Counter[str], *, bare: bool) -> int:
    """Returns how many calls ended with an error without RetryInfo (`bare`) or with it; no caller's own deadline."""
    ending = ".bare" if bare else ".retry"
    return sum(count for end, count in ends.items() if end.endswith(ending) and end != OUT_OF_PATIENCE)


def step_rows(name: str, factor: float, step: Step, *, capacity: float, memory_at_capacity: float) -> list[Row]:
    """Returns the rows of a step at `factor` times the capacity."""
    where, void = f"{name}.{factor:g}", cores.overdriven([step.use]) or cores.disturbed(step.others)
    use = ", ".join(f"core {number} at {share:.0%}" for number, share in enumerate(step.use))
    use += f", {step.others:.0%} of core {cores.SERVING} by other programs"
    about = f"turns a second in time, {factor:g} x capacity offered; floor: the capacity; {use}"
    recovery = step.recovery
    rows = [
        row(f"{where}.goodput", about, [step.goodput], unit="/s", floor=capacity, void=void),
        row(f"{where}.reads.answered", "GetSession answered", [100 * step.answered], unit="%", void=void),
        row(f"{where}.reads.p99", "p99 of GetSession", [step.reads_p99_ms], unit="ms", void=void),
        row(f"{where}.cancelled", "turns that ended as bare CANCELLED", [step.ends[BARE_CANCELLED]], unit=""),
        row(f"{where}.bare", "turns refused without RetryInfo", [refusals(step.ends, bare=True)], unit=""),
        row(f"{where}.refused", "turns refused with RetryInfo", [refusals(step.ends, bare=False)], unit=""),
        row(f"{where}.leases_lost", "leases lost by their owner", [step.leases_lost], unit=""),
        row(f"{where}.unfinished", "accepted turns that are not COMPLETED", [step.unfinished], unit=""),
        row(
            f"{where}.memory",
            "the most memory that the server held; floor: at capacity",
            [step.memory],
            unit="MiB",
            floor=memory_at_capacity,
        ),
        row(
            f"{where}.recovery",
            "seconds until 0.8 x capacity is served again"
            + ("" if recovery is not None else "; it was not while it was watched"),
            [step.phases.recovering if recovery is None else recovery],
            unit="s",
            void=void,
        ),
    ]
    return rows + [
        row(f"{where}.ended.{end}", "turns that ended so", [count], unit="")
        for end, count in sorted(step.ends.items())
        if end not in (COMPLETED,)
    ]
