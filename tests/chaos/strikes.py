"""Faults as they happened, and the file of all of them."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos.plan import Lane

UNWRITABLE: Final = "unwritable"
"""Not a fault but an effect of some: no write reached a majority. Its line has the target `majority`."""


@dataclass(slots=True, kw_only=True)
class Strike:
    """One fault. Only a confirmed one counts: its effect was observed. Times are by the machine's wall clock."""

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
        """Begins the fault now, with this target."""
        self.target = target
        self.began, self.began_mono = time.time(), time.monotonic()

    def confirm(self, evidence: str) -> None:
        """Confirms that the fault took effect, with the evidence."""
        self.evidence.append(evidence)
        self.confirmed = self.confirmed or time.time()

    def note(self, evidence: str) -> None:
        """Adds evidence that is not a confirmation."""
        self.evidence.append(evidence)

    def end(self) -> None:
        """Ends the fault now."""
        self.healed, self.healed_mono = time.time(), time.monotonic()

    def line(self) -> Mapping[str, Any]:
        """Returns the fault as it is stored."""
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
    """The file of all faults, a JSON line each, in the order of their ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.strikes: list[Strike] = []
        self.gaps: list[float] = []

    def add(self, strike: Strike) -> None:
        self.strikes.append(strike)
        self._write(strike.line())

    def unwritable(self, began: float, healed: float) -> None:
        """Records a gap without writes: from the last write before it to the first after it."""
        self.gaps.append(healed - began)
        self._write({"kind": UNWRITABLE, "target": "majority", "began": began, "confirmed": healed, "healed": healed})

    def tally(self) -> dict[str, dict[str, int]]:
        """Returns by kind how many faults were tried, and how many took effect."""
        counted: dict[str, dict[str, int]] = {}
        for strike in self.strikes:
            row = counted.setdefault(strike.kind, {"tried": 0, "confirmed": 0})
            row["tried"] += 1
            row["confirmed"] += strike.confirmed is not None
        return dict(sorted(counted.items()))

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
