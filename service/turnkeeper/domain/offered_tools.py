"""The tools that an agent is offered, as one value that is the same at each model call."""

from collections.abc import Iterable, Sequence
from typing import Self

from turnkeeper.domain.tool import ClientTool, ToolSpec


class OfferedTools(tuple[ToolSpec, ...]):  # noqa: SLOT001 - a tuple can have no slots of its own
    """The tools that an agent is offered, with their encoded forms: they are encoded once, not at each model call."""

    forms: dict[str, dict[str, object]]
    """By the key of a model's adapter: its form of each tool, by the tool's name."""

    def __new__(cls, tools: Iterable[ToolSpec]) -> Self:
        """Makes the tuple, with no form of any tool yet."""
        offered = super().__new__(cls, tools)
        offered.forms = {}
        return offered

    def beside(self, clients: Sequence[ClientTool]) -> Self:
        """Returns the tools without those that a client's tool replaces, then the client's. They share their forms."""
        theirs = {tool.name for tool in clients}
        both = type(self)((*(spec for spec in self if spec.name not in theirs), *(tool.spec for tool in clients)))
        both.forms = self.forms
        return both
