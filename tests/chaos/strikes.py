"""A fault as it happened, and the file that keeps them all."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos.plan import Lane

UNWRITABLE: Final = "unwritable"
"""Not a fault but what came of some: nobody could write to a majority. Its line has the target `majority`."""


@dataclass(slots=True, kw_only=True)
class Strike:
    """One fault. Only a confirmed one counts: its effect was seen, not assumed. Times are the machine's wall clock."""

    kind: str
    lane: Lane
    number: int
    target: str = ""
    began: float = field(default_factory=time.time)
    began_mono: float = field(default_factory=time.monotonic)
    confirmed: float | None = None
    healed: float | None = None
    healed_mono: float | None = None
    evidence: list[str] = field(default_factory=list)
    error: str = ""

    def aim(self, target: str) -> None:
        """It begins now, with this target."""
        self.target = target
        self.began, self.began_mono = time.time(), time.monotonic()

    def confirm(self, evidence: str) -> None:
        """It took effect: what was seen of it."""
        self.evidence.append(evidence)
        self.confirmed = self.confirmed or time.time()

    def note(self, evidence: str) -> None:
        """Worth knowing, and no proof."""
        self.evidence.append(evidence)

    def end(self) -> None:
        """It is over."""
        self.healed, self.healed_mono = time.time(), time.monotonic()

    def line(self) -> Mapping[str, Any]:
        """As it is stored."""
        return {
            "kind": self.kind,
            "target": self.target,
            "lane": self.lane.value,
            "number": self.number,
            "began": self.began,
            "began_mono": self.began_mono,
            "confirmed": self.confirmed,
            "healed": self.healed,
            "healed_mono": self.healed_mono,
            "evidence": "; ".join(self.evidence),
            "error": self.error,
        }


class Faults:
    """The file of all that was done, a JSON line each, in the order in which it was over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.strikes: list[Strike] = []
        self.gaps: list[float] = []

    def add(self, strike: Strike) -> None:
        self.strikes.append(strike)
        self._write(strike.line())

    def unwritable(self, began: float, healed: float) -> None:
        """From the last write before a gap to the first one after it."""
        self.gaps.append(healed - began)
        self._write({"kind": UNWRITABLE, "target": "majority", "began": began, "confirmed": healed, "healed": healed})

    def tally(self) -> dict[str, dict[str, int]]:
        """By kind: how many were tried, how many took effect."""
        counted: dict[str, dict[str, int]] = {}
        for strike in self.strikes:
            row = counted.setdefault(strike.kind, {"tried": 0, "confirmed": 0})
            row["tried"] += 1
            row["confirmed"] += strike.confirmed is not None
        return dict(sorted(counted.items()))

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
