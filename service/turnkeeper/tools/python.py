"""Python functions as tools, found in a file or by the entry point group `turnkeeper.tools`.

An entry point names a module (all its functions marked with `@tool`) or one such function. The signature is the
schema; the docstring is the description. The service fills in a parameter annotated with `ToolContext`; the model
never sees it.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar, get_type_hints, overload

import pydantic
import pydantic_core

from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.errors import AgentConfigError
from turnkeeper.isolation import ends_task
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.coroutines import in_tool_loop
from turnkeeper.tools.failure import Failure, ToolFailed, failure_of
from turnkeeper.tools.naming import FORM
from turnkeeper.tools.results import check_size, result_text
from turnkeeper.tools.threads import ToolThreads

GROUP = "turnkeeper.tools"
"""The entry point group."""
MARK = "__turnkeeper_tool__"
"""The attribute that `@tool` sets on a function: a `Mark`."""
LONGEST_TIMEOUT = timedelta(days=7)
"""The longest `timeout` of a tool."""
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What `@tool` states about a function."""

    name: str
    tool_class: ToolClass
    timeout: timedelta | None
    asks: bool
    trusted_output: bool = True


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    tool_class: ToolClass | None = None,
    name: str = "",
    timeout: float | timedelta | None = None,
    approve: bool = False,
    trusted_output: bool = True,
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    /,
    *,
    tool_class: ToolClass | None = None,
    name: str = "",
    timeout: float | timedelta | None = None,
    approve: bool = False,
    trusted_output: bool = True,
) -> F | Callable[[F], F]:
    """Marks a function as a tool.

    `tool_class` states what a repeated call may do. Without it the tool counts as IRREVERSIBLE, and a person decides on
    each call. `approve=True`: a person decides, whatever the class; no policy takes that question away. `timeout`: how
    long a call may run, in seconds; an agent's `tool_timeout` may be shorter. `name` replaces the function's.
    `trusted_output=False`: what it returns was written by others, such as a web page or a mail; an IRREVERSIBLE call
    that comes after it asks a person. Raises ValueError for a timeout that is not above 0, or over 7 days.
    """
    if timeout is not None:
        timeout = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        if not timedelta() < timeout <= LONGEST_TIMEOUT:
            raise ValueError(f"timeout is {timeout}; it must be above 0, and at most 7 days")

    def mark(function: F) -> F:
        statement = Mark(
            name=name or function.__name__,
            tool_class=tool_class or ToolClass.IRREVERSIBLE,
            timeout=timeout,
            asks=approve or tool_class is None,
            trusted_output=trusted_output,
        )
        setattr(function, MARK, statement)
        return function

    return mark if function is None else mark(function)


@dataclass(frozen=True, slots=True)
class _Function:
    """A function and what its signature gave."""

    spec: ToolSpec
    function: Callable[..., object]
    arguments: type[pydantic.BaseModel]
    """The model that validates arguments."""
    context: str
    """The name of the parameter that takes the context; empty for none."""

    def keywords(self, arguments: dict[str, object], context: ToolContext) -> dict[str, object]:
        """Returns what the function is called with. Raises what the types of its parameters raise."""
        model = self.arguments.model_validate(arguments)
        keywords = {field: getattr(model, field) for field in self.arguments.model_fields}
        return {**keywords, self.context: context} if self.context else keywords


class PythonTools:
    """A source of tools: functions of this process.

    Plain functions run in threads, coroutine functions in an event loop of the tools' own. All code of a tool's author
    runs there: the checks of the arguments, the function, the conversion of its result, the text of its exception.
    """

    def __init__(self, functions: Iterable[Callable[..., object]]) -> None:
        """Raises AgentConfigError if two tools have one name, or if one has no valid name or schema."""
        self.threads = ToolThreads()
        self.listing = 1
        self._functions = _described(functions)

    @property
    def functions(self) -> Sequence[Callable[..., object]]:
        """Returns the functions, as they were given."""
        return [described.function for described in self._functions.values()]

    def replace(self, functions: Iterable[Callable[..., object]]) -> None:
        """Takes these functions from now on. A call that runs goes on with the old code. Raises as `__init__`."""
        self._functions = _described(functions)
        self.listing += 1

    def specs(self) -> Sequence[ToolSpec]:
        """Returns the tools in the order of their functions."""
        return [described.spec for described in self._functions.values()]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Runs the function with arguments of its own types; see `ToolSource.call`."""
        described = self._functions[name]
        if inspect.iscoroutinefunction(described.function):
            outcome = await in_tool_loop(functools.partial(_awaited, described, arguments, context))
        else:
            work = functools.partial(_returned, described, arguments, context)
            outcome = await self.threads.run(work, tool=name, agent=context.agent)
        if isinstance(outcome, Failure):
            raise ToolFailed(outcome)
        return outcome


def _returned(described: _Function, arguments: dict[str, object], context: ToolContext) -> str | Failure:
    """Calls a plain function. Returns its result as JSON text, or what it raised."""
    try:
        return _text_of(described.function(**described.keywords(arguments, context)))
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its own failure
        return failure_of(error)


async def _awaited(described: _Function, arguments: dict[str, object], context: ToolContext) -> str | Failure:
    """Calls a coroutine function. Returns its result as JSON text, or what it raised. Can be cancelled."""
    try:
        coroutine: Any = described.function(**described.keywords(arguments, context))
        return _text_of(await coroutine)
    except BaseException as error:
        if ends_task(error):
            raise
        return failure_of(error)


def _text_of(result: object) -> str:
    """Returns a function's result as JSON text. Raises UnfitResult, and what the result's own methods raise."""
    check_size(result)
    return result_text(pydantic_core.to_jsonable_python(result))


def installed() -> list[Callable[..., object]]:
    """Returns the marked functions of every installed entry point, ordered by the entry points' names.

    Raises AgentConfigError if an entry point cannot be loaded, or names something else.
    """
    functions: list[Callable[..., object]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            loaded = entry.load()
        except BaseException as error:  # a module may exit, or a Rust library panic, while it is loaded
            failure = failure_of(error)
            raise AgentConfigError(
                f"The tools of entry point {entry.name} ({entry.value}) cannot be loaded: "
                f"{failure.text or failure.kind} (repair its package, or uninstall it)"
            ) from error
        functions.extend(_marked(loaded, entry.name))
    return functions


def marked_in(module: ModuleType) -> list[Callable[..., object]]:
    """Returns the module's functions that are marked with `@tool`, each once."""
    values = {id(value): value for value in vars(module).values()}.values()
    return [value for value in values if callable(value) and isinstance(getattr(value, MARK, None), Mark)]


def _marked(loaded: object, entry: str) -> list[Callable[..., object]]:
    """Returns the marked functions of a loaded entry point. Raises AgentConfigError for anything else."""
    if isinstance(loaded, ModuleType):
        return marked_in(loaded)
    if callable(loaded) and isinstance(getattr(loaded, MARK, None), Mark):
        return [loaded]
    raise AgentConfigError(f"Entry point {entry} names neither a module nor a function marked with @tool.")


def _described(functions: Iterable[Callable[..., object]]) -> dict[str, _Function]:
    """Returns the functions by the names of their tools. Raises AgentConfigError, also for two of one name."""
    tools: dict[str, _Function] = {}
    for function in functions:
        described = _describe(function)
        if described.spec.name in tools:
            raise AgentConfigError(f"{place_of(function)}Two tools are named {described.spec.name}; rename one.")
        tools[described.spec.name] = described
    return tools


def place_of(function: Callable[..., object]) -> str:
    """Returns `FILE:LINE: ` of a function for the beginning of a message; empty for what has no code of its own."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""


def _describe(function: Callable[..., object]) -> _Function:
    """Returns the function as a tool. Raises AgentConfigError for a bad name or a signature without a JSON Schema."""
    mark: Mark = getattr(function, MARK)
    name = mark.name
    if not FORM.fullmatch(name):
        raise AgentConfigError(f"{place_of(function)}A tool is named {name!r:.80}; a name must match {FORM.pattern}.")
    try:
        fields, context = _parameters(function)
        make = pydantic.create_model
        forms = pydantic.ConfigDict(extra="forbid", protected_namespaces=())
        model: type[pydantic.BaseModel] = make(name, __config__=forms, **fields)  # type: ignore[call-overload]
        schema = model.model_json_schema()
    except (pydantic.errors.PydanticUserError, NameError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise AgentConfigError(f"{place_of(function)}The tool {name} cannot be described: {reason}") from error
    spec = ToolSpec(
        name=name,
        description=inspect.getdoc(function) or name,
        schema_json=json.dumps(schema, sort_keys=True, separators=(",", ":")),
        tool_class=mark.tool_class,
        source="python",
        asks=mark.asks,
        timeout=mark.timeout,
        trusted_output=mark.trusted_output,
    )
    return _Function(spec, function, model, context)


def _parameters(function: Callable[..., object]) -> tuple[dict[str, tuple[object, object]], str]:
    """Returns the parameters that the model fills in, and the name of the one that takes the context.

    Raises ValueError for a parameter that has no plain name.
    """
    annotations = get_type_hints(function, include_extras=True)
    fields: dict[str, tuple[object, object]] = {}
    context = ""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _BY_NAME or parameter.name.startswith("_"):
            raise ValueError(f"every parameter needs a name without a leading underscore, and {parameter} has none")
        annotation = annotations.get(parameter.name, str)
        if annotation is ToolContext:
            context = parameter.name
            continue
        fields[parameter.name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    return fields, context
