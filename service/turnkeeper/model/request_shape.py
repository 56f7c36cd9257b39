"""Which fields a model's server is sent: as an agent's keys configure them, less what the server has refused."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from turnkeeper.model.dialect import LIMIT_NAMES, SILENT, WARNED

NEEDED: Final = frozenset({"model", "messages", "stream"})
"""Fields without which there is no call."""
PLAIN_CALLS: Final = "messages.tool_calls"
"""What is remembered of a server that takes calls only without what it sent beside them."""
_MOST_LEARNT: Final = 1000
"""Pairs of a server and a model whose refusals are remembered; beyond it, the oldest pair is forgotten."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """The fields of a request to one model of one server."""

    limit_field: str
    """The server's name for the output limit."""
    omitted: frozenset[str] = frozenset()
    """Fields that are not sent."""

    def without(self, refused: frozenset[str]) -> "RequestShape":
        """Returns the shape for a server that refuses these fields. Of the output limit it takes the other name."""
        names = [name for name in (self.limit_field, *LIMIT_NAMES) if name not in refused]
        return RequestShape(
            limit_field=names[0] if names else self.limit_field, omitted=self.omitted | (refused - set(LIMIT_NAMES))
        )


def first_needed(refused: Collection[str]) -> str:
    """Returns the first of the refused fields that no request can do without; empty if there is none."""
    for field in refused:
        if field in LIMIT_NAMES:
            if set(LIMIT_NAMES) <= set(refused):
                return field
        elif field not in SILENT and field not in WARNED:
            return field
    return ""


class Refusals:
    """The fields that servers have refused, by server and model, in memory. The models of a process share one."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str], frozenset[str]] = {}

    def of(self, server: str, model: str) -> frozenset[str]:
        """Returns the fields that the server refuses for this model, as far as they are known."""
        return self._refused.get((server, model), frozenset())

    def learn(self, server: str, model: str, refused: frozenset[str]) -> None:
        """Remembers that the server refuses these fields, and logs the new ones."""
        known = self.of(server, model)
        new = refused - known
        if not new:
            return
        if not known and len(self._refused) >= _MOST_LEARNT:
            self._refused.pop(next(iter(self._refused)))
        self._refused[server, model] = known | new
        for field in sorted(new):
            logger.log(
                logging.WARNING if field in WARNED else logging.INFO,
                "the model server %s refuses the field %s for the model %s; calls leave it out until the next start",
                *(server, field, model),
            )
