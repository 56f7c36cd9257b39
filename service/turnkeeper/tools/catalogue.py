"""The catalogue: which tool servers there are, and what the operator states about tools.

Its format is published in docs/reference/catalogue.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from turnkeeper import durations
from turnkeeper.checked_toml import checked_table, checked_toml
from turnkeeper.domain.tool import CLIENT, ToolClass, ToolSpec
from turnkeeper.toml_file import TomlFile
from turnkeeper.tools.naming import SEPARATOR
from turnkeeper.tools.results import RESULT_BYTES
from turnkeeper.watched_file import BadFile

MAX_BYTES: Final = 4 << 20
"""The greatest size of the file. A longer one is a mistake, such as a log or a device."""
LONGEST_TIMEOUT: Final = timedelta(days=7)
MOST_ATTEMPTS: Final = 10
MOST_AT_ONCE: Final = 10_000
KINDS: Final = ("mcp", "grpc")
"""How a server is spoken to: the key of a [[server]] that tells it."""
_OWN_SOURCES: Final = ("python", CLIENT)
"""Names that stand for tools of this process and of the client."""
_ORDER: Final = (ToolClass.READ_ONLY, ToolClass.IDEMPOTENT, ToolClass.IRREVERSIBLE, ToolClass.FORBIDDEN)
"""The classes, the strictest last."""

T = TypeVar("T", bound=BaseModel)


def _duration(value: object) -> object:
    """Reads a duration as people write it. Raises ValueError."""
    read = timedelta()
    if isinstance(value, str):
        try:
            read = durations.parse(value)
        except ValueError:
            read = timedelta()
    if not read:
        raise ValueError(f"must be a duration such as {durations.EXAMPLES}")
    if read > LONGEST_TIMEOUT:
        raise ValueError("must be at most 7d")
    return read


def _tool_class(value: object) -> object:
    classes = {one.value.lower(): one for one in _ORDER}
    if not isinstance(value, str) or value not in classes:
        raise ValueError(f"must be {', '.join(list(classes)[:-1])} or {list(classes)[-1]}")
    return classes[value]


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A duration above 0 and of 7 days at most, such as "5s". Also for the tables of servers."""
_Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class CatalogueEntry(BaseModel):
    """What one [[tool]] states about the tools that it covers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    tool: _Name
    """The full name of a tool, or a pattern with `*` and `?`."""
    tool_class: Annotated[ToolClass | None, BeforeValidator(_tool_class)] = Field(default=None, alias="class")
    timeout: Duration | None = None
    attempts: int = Field(default=1, ge=1, le=MOST_ATTEMPTS)
    """Starts of one call, of a tool whose call may start again."""
    concurrency: int | None = Field(default=None, ge=1, le=MOST_AT_ONCE)
    """Calls on this replica at the same time, of all its tools together; None: no limit of its own."""
    result_bytes: int = Field(default=RESULT_BYTES, ge=1, le=RESULT_BYTES)
    trusted_output: bool | None = None
    agents: Annotated[list[_Name] | None, Field(max_length=1_000)] = None
    """Names or patterns of the agents that may use the tools; None: each that names one."""

    def admits(self, agent: str) -> bool:
        """Returns True if the agent of this name may use the tools."""
        return self.agents is None or any(fnmatchcase(agent, pattern) for pattern in self.agents)


UNLISTED: Final = CatalogueEntry(tool="*")
"""What counts for a Python tool that no [[tool]] covers."""


@dataclass(frozen=True, kw_only=True)
class ToolServer:
    """One [[server]] of the catalogue: its table, which the source of its kind reads."""

    name: str
    """The source's name, and the first part of the names of its tools."""
    kind: str
    """One of KINDS."""
    values: Mapping[str, Any]
    """The table, without its name."""
    file: TomlFile = field(compare=False, repr=False)
    number: int = field(compare=False)
    """Its place among the servers, from 0."""

    def read(self, model: type[T]) -> T:
        """Returns the table's values, checked by a model that forbids extra keys. Raises BadFile."""
        return checked_table(self.file, self.values, model, keys=("server", self.number))

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Raises BadFile with the key's place. `reason` completes the sentence that the key begins."""
        raise BadFile(f"{self.file.place('server', self.number, key)}: server {self.name}: {key} {reason}")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The content of the file. Without one there are no servers, and nothing is stated about any tool."""

    servers: Sequence[ToolServer] = ()
    entries: Sequence[CatalogueEntry] = ()

    def entry_of(self, name: str) -> CatalogueEntry | None:
        """Returns the first entry that covers the tool of this full name."""
        return next((entry for entry in self.entries if fnmatchcase(name, entry.tool)), None)

    def is_foreign(self, source: str) -> bool:
        """Returns True if the source of this name is a server of the catalogue."""
        return source in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(server.name for server in self.servers)

    def refusal(self, name: str, *, agent: str) -> str:
        """Returns why the agent may not use the tool of this full name; empty if the catalogue does not forbid it."""
        entry = self.entry_of(name)
        if entry is None:
            is_foreign = self.is_foreign(name.partition(SEPARATOR)[0])
            return "which no [[tool]] of the catalogue covers: a server's tool needs one" if is_foreign else ""
        return "" if entry.admits(agent) else f"which the [[tool]] {entry.tool!r:.70} of the catalogue keeps from it"

    def stated(self, spec: ToolSpec) -> tuple[ToolSpec, CatalogueEntry] | None:
        """Returns the tool with what the catalogue states about it. Returns None if it must not be called.

        The strictest of both counts. A server's tool needs an entry. Without a class there it is IRREVERSIBLE and asks,
        whatever its server states; its output is trusted only if the entry states so.
        """
        entry = self.entry_of(spec.name)
        is_foreign = self.is_foreign(spec.source)
        if entry is None:
            return None if is_foreign else (spec, UNLISTED)
        stated_class = entry.tool_class or (ToolClass.IRREVERSIBLE if is_foreign else spec.tool_class)
        if is_foreign:
            trusted = entry.trusted_output is True
        else:
            trusted = spec.trusted_output and entry.trusted_output is not False
        times = [time for time in (spec.timeout, entry.timeout) if time is not None]
        return replace(
            spec,
            tool_class=max(stated_class, spec.tool_class, key=_ORDER.index),
            asks=spec.asks or (is_foreign and entry.tool_class is None),
            trusted_output=trusted,
            timeout=min(times, default=None),
        ), entry


class _CatalogueTables(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    server: Annotated[list[dict[str, Any]], Field(max_length=1_000)] = []
    tool: Annotated[list[dict[str, Any]], Field(max_length=1_000)] = []


class _NamedServer(BaseModel):
    """The part of a server's table that is the same for all kinds."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]


def load(path: Path | None) -> Catalogue:
    """Returns the catalogue of the file. Raises BadFile, which names file, line and key."""
    return Catalogue() if path is None else parse(path, _content(path))


def parse(path: Path, content: bytes) -> Catalogue:
    """Returns the catalogue of a file's content. Raises BadFile, which names file, line and key."""
    file, contents = checked_toml(path, content, _CatalogueTables)
    servers: dict[str, ToolServer] = {}
    for number, table in enumerate(contents.server):
        server = _server(file, table, number)
        if server.name in servers:
            server.refuse("name", "is that of a server before")
        servers[server.name] = server
    entries = [
        checked_table(file, table, CatalogueEntry, keys=("tool", number)) for number, table in enumerate(contents.tool)
    ]
    return Catalogue(servers=tuple(servers.values()), entries=tuple(entries))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadFile(f"There is no file {path}; --catalogue names a TOML file of tools and their servers") from None
    except OSError as error:
        raise BadFile(f"The catalogue {path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise BadFile(f"The catalogue {path} has more than {MAX_BYTES:,} bytes")
    return content


def _server(file: TomlFile, table: Mapping[str, Any], number: int) -> ToolServer:
    name = checked_table(file, table, _NamedServer, keys=("server", number)).name
    kinds = [kind for kind in KINDS if kind in table]
    values = {key: value for key, value in table.items() if key != "name"}
    server = ToolServer(name=name, kind=kinds[0] if kinds else "", values=values, file=file, number=number)
    if name in _OWN_SOURCES:
        server.refuse("name", "stands for other tools already; choose another one")
    if len(kinds) != 1:
        needed = f"needs one of {' and '.join(KINDS)} beside it, and no more"
        server.refuse(kinds[1] if kinds else "name", needed)
    return server
