"""Reads tools from a Python file, which needs neither a package nor an entry point."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

from turnkeeper.errors import AgentConfigError
from turnkeeper.tools import samples
from turnkeeper.tools.failure import failure_of
from turnkeeper.tools.python import MARK, Mark, installed, marked_in

MAX_BYTES: Final = 4 << 20
"""The greatest size of the file. A longer one is a mistake, such as a log or a device."""


def with_installed(path: Path | None) -> list[Callable[..., object]]:
    """Returns the tools of the file, if there is one, and those of installed packages.

    A sample tool gives way to a tool of the file with its name. Raises AgentConfigError, which names file and line.
    """
    if path is None:
        return installed()
    own = load(path)
    names = {_name_of(function) for function in own}
    given = [function for function in installed() if not (_is_sample(function) and _name_of(function) in names)]
    return [*given, *own]


def load(path: Path) -> list[Callable[..., object]]:
    """Returns the file's functions that are marked with `@tool`. Runs the file.

    Modules beside the file can be imported. Raises AgentConfigError in one sentence, with the line where there is one.
    """
    module = _module(path, _content(path))
    functions = marked_in(module)
    if not functions:
        raise AgentConfigError(f"{path}: there is no tool: mark a function with @tool, from turnkeeper.tools.")
    return functions


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise AgentConfigError(f"There is no file {path}; --tools names a Python file of tools.") from None
    except OSError as error:
        raise AgentConfigError(f"The file of tools {path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise AgentConfigError(f"The file of tools {path} has more than {MAX_BYTES:,} bytes.")
    return content


def _module(path: Path, content: bytes) -> ModuleType:
    """Returns the file as a module. Its name is that of the file, with the ending, which no installed module has."""
    place = path.resolve()
    module = ModuleType(place.name)
    module.__file__ = str(place)
    folder = str(place.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that no file there stands in for an installed module
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses and pydantic look their annotations up there
    try:
        code = compile(content, str(path), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - the operator names the file; it is read anew, past caches of its code
    except BaseException as error:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        if isinstance(error, KeyboardInterrupt):  # a person ends the start
            raise
        raise AgentConfigError(_reason(path, error)) from error
    return module


def _reason(path: Path, error: BaseException) -> str:
    """Returns why the file cannot be loaded, with the line of the file itself."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno or 1}: this is not Python: {error.msg}."
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    failure = failure_of(error)
    text = " ".join(failure.text.split()).rstrip(".")
    if not lines:  # it did not begin, such as a file with NUL characters
        return f"{path}: this is not Python: {text or failure.kind}."
    return f"{path}:{lines[-1]}: the file cannot be loaded: {failure.kind}{f': {text}' if text else ''}."


def _name_of(function: Callable[..., object]) -> str:
    mark: Mark = getattr(function, MARK)
    return mark.name


def _is_sample(function: Callable[..., object]) -> bool:
    return getattr(function, "__module__", "") == samples.__name__
