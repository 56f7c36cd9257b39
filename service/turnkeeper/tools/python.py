"""Python functions as tools, found by the entry point group `turnkeeper.tools`.

An entry point names a module (all its functions marked with `@tool`) or one such function. The signature is the
schema; the docstring is the description. A parameter annotated with `ToolContext` is filled in, not asked for.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar, get_type_hints

import pydantic
import pydantic_core

from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.errors import AgentConfigError
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.threads import in_thread

GROUP = "turnkeeper.tools"
MARK = "__turnkeeper_tool__"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

F = TypeVar("F", bound=Callable[..., object])


def tool(*, tool_class: ToolClass, name: str = "") -> Callable[[F], F]:
    """Mark a function as a tool. `tool_class` says what repeating a call may do; it is the operator's word."""

    def mark(function: F) -> F:
        setattr(function, MARK, (name or function.__name__, tool_class))
        return function

    return mark


@dataclass(frozen=True, slots=True)
class _Function:
    spec: ToolSpec
    function: Callable[..., object]
    arguments: type[pydantic.BaseModel]
    context: str


class PythonTools:
    """A source of tools that are functions of this process. Plain functions run in threads."""

    def __init__(self, functions: Iterable[Callable[..., object]]) -> None:
        """Raises AgentConfigError when two tools have one name, or one cannot be described."""
        self._functions: dict[str, _Function] = {}
        for function in functions:
            found = _describe(function)
            if found.spec.name in self._functions:
                raise AgentConfigError(f"Two tools are named {found.spec.name}; rename one.")
            self._functions[found.spec.name] = found

    def specs(self) -> Sequence[ToolSpec]:
        return [found.spec for found in self._functions.values()]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> object:
        found = self._functions[name]
        values = found.arguments.model_validate(arguments)
        given = {field: getattr(values, field) for field in found.arguments.model_fields}
        if found.context:
            given[found.context] = context
        if inspect.iscoroutinefunction(found.function):
            result = await found.function(**given)
        else:
            result = await in_thread(functools.partial(found.function, **given))
        return pydantic_core.to_jsonable_python(result)


def installed() -> list[Callable[..., object]]:
    """The marked functions of every installed entry point, in order of their entry points' names."""
    functions: list[Callable[..., object]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            loaded = entry.load()
        except Exception as error:
            raise AgentConfigError(
                f"The tools of entry point {entry.name} ({entry.value}) cannot be loaded: {error}"
            ) from error
        functions.extend(_marked(loaded, entry.name))
    return functions


def _marked(loaded: object, entry: str) -> list[Callable[..., object]]:
    if isinstance(loaded, ModuleType):
        return [value for value in vars(loaded).values() if callable(value) and hasattr(value, MARK)]
    if callable(loaded) and hasattr(loaded, MARK):
        return [loaded]
    raise AgentConfigError(f"Entry point {entry} names neither a module nor a function marked with @tool.")


def _describe(function: Callable[..., object]) -> _Function:
    """Raises AgentConfigError for what no schema can say, or no model may be told."""
    name, tool_class = getattr(function, MARK)
    if not _NAME.fullmatch(name):
        raise AgentConfigError(f"A tool is named {name!r}; a name must match {_NAME.pattern}.")
    try:
        fields, context = _parameters(function)
        make = pydantic.create_model
        forms = pydantic.ConfigDict(extra="forbid", protected_namespaces=())
        model: type[pydantic.BaseModel] = make(name, __config__=forms, **fields)  # type: ignore[call-overload]
        schema = model.model_json_schema()
    except (pydantic.errors.PydanticUserError, NameError, TypeError, ValueError) as error:
        raise AgentConfigError(f"The tool {name} cannot be described: {str(error).splitlines()[0]}") from error
    spec = ToolSpec(
        name=name,
        description=inspect.getdoc(function) or name,
        schema_json=json.dumps(schema, sort_keys=True, separators=(",", ":")),
        tool_class=tool_class,
        source="python",
    )
    return _Function(spec, function, model, context)


def _parameters(function: Callable[..., object]) -> tuple[dict[str, tuple[object, object]], str]:
    """What is asked for, and the name of the parameter that takes the context. Raises ValueError."""
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, tuple[object, object]] = {}
    context = ""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _BY_NAME or parameter.name.startswith("_"):
            raise ValueError(f"every parameter needs a name without a leading underscore, and {parameter} has none")
        hint = hints.get(parameter.name, str)
        if hint is ToolContext:
            context = parameter.name
            continue
        fields[parameter.name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
    return fields, context
