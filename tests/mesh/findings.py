"""What a run finds: its figures, and whether each promise held."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.mesh.stage import Open

AT_LEAST: Final = Open(streams=16, calls=16)
"""What must be open at a replica when a fault lands on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault that was made. `open`: what was open at the replica in that moment; `began`: wall seconds.

    `turns`: those that the replica owned, by their ids. `out`: seconds until Envoy sent it no more calls; None where it
    stays in.
    """

    kind: str
    replica: str
    began: float
    open: Open
    turns: frozenset[str] = frozenset()
    out: float | None = None

    @property
    def as_figures(self) -> Mapping[str, Any]:
        out = None if self.out is None else round(self.out, 2)
        figures = {"kind": self.kind, "replica": self.replica, "streams": self.open.streams, "calls": self.open.calls}
        return {**figures, "turns": len(self.turns), "out_seconds": out}


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of a run: what was measured of it, as people read it, and whether it held."""

    about: str
    measured: str
    held: bool


@dataclass(slots=True)
class Phase:
    """A part of a run, with its begin and end in wall seconds."""

    name: str
    began: float = field(default_factory=time.time)
    ended: float = float("inf")


@dataclass(slots=True)
class Findings:
    """Everything that a run finds."""

    phases: list[Phase] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return bool(self.promises) and all(promise.held for promise in self.promises)

    def expect(self, about: str, measured: object, held: bool) -> None:
        """Records a promise."""
        self.promises.append(Promise(about, str(measured), held))

    def phase_of(self, wall: float) -> str:
        """Returns the name of the phase that this moment was in."""
        return next((phase.name for phase in self.phases if phase.began <= wall < phase.ended), "between phases")
