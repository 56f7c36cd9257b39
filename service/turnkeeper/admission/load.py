"""What the engine reports of its load."""

from dataclasses import dataclass, field

from turnkeeper.admission.backlog import Backlog
from turnkeeper.admission.limit import Limit


@dataclass(frozen=True, slots=True)
class Load:
    """The limit, which gets how long commits take, and the backlog, which gets the turns."""

    limit: Limit = field(default_factory=Limit)
    backlog: Backlog = field(default_factory=Backlog)
