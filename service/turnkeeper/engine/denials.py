"""The tools that operators deny, as this replica knows them: read again each second, so replicas agree within two."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import PolicyAction


class Denials:
    """The denials of all tenants."""

    def __init__(self) -> None:
        self._denials: Sequence[ToolDenial] = ()

    def set(self, denials: Iterable[ToolDenial]) -> None:
        """Takes what is denied from now on."""
        self._denials = tuple(denials)

    def ruling_on(self, tenant: str, tool: str) -> Ruling | None:
        """Returns the ruling of a denial that covers the tool in the tenant, or None if none does."""
        for denial in self._denials:
            if denial.tenant == tenant and fnmatchcase(tool, denial.pattern):
                text = f'tool = "{denial.pattern}", denied by an operator'
                return Ruling(action=PolicyAction.DENY, rule=f"DenyTool {denial.pattern}", rule_text=text)
        return None
