"""What the engine reports of its load."""

from dataclasses import dataclass, field

from turnkeeper.admission.backlog import Backlog
from turnkeeper.admission.limit import Limit
from turnkeeper.admission.rate import Rate
from turnkeeper.domain.turn import Turn


@dataclass(frozen=True, slots=True)
class Load:
    """The limit, which gets how long commits take, and what gets the turns."""

    limit: Limit = field(default_factory=Limit)
    backlog: Backlog = field(default_factory=Backlog)
    rate: Rate = field(default_factory=Rate)

    def accepted(self, turn: Turn) -> None:
        """Takes a turn that this replica accepted."""
        self.backlog.stored(turn)
        self.rate.stepped()

    def changed(self, turn: Turn) -> None:
        """Takes a turn as this replica stored it later on."""
        self.backlog.stored(turn)
        if not turn.state.moving:
            self.rate.stepped()
