"""Reads the content of a file in TOML into a pydantic model. What is wrong is named by file, line and key."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from turnkeeper.toml_file import Keys, TomlError, TomlFile
from turnkeeper.watched_file import BadFile

T = TypeVar("T", bound=BaseModel)


def checked_toml(path: Path, content: bytes, model: type[T]) -> tuple[TomlFile, T]:
    """Returns the file, which finds the places of keys, and its values. Raises BadFile."""
    try:
        file = TomlFile(path, content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise BadFile(f"{path}: it is not UTF-8 text") from None
    except TomlError as error:
        raise BadFile(f"{path}:{error.line}: this is not TOML: {error}") from None
    return file, checked_table(file, file.values, model)


def checked_table(file: TomlFile, values: Mapping[str, Any], model: type[T], *, keys: Keys = ()) -> T:
    """Returns the values of one table of the file. `keys` is the way to the table. Raises BadFile."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadFile(_problem(file, error, model, keys)) from None


def _problem(file: TomlFile, error: ValidationError, model: type[BaseModel], table: Keys) -> str:
    """Returns the first problem, with its place and without the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    keys: Keys = first["loc"]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and len(keys) == 1:
        known = [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(str(keys[0]), known, n=1)
        suggestion = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
        reason = f"there is no such key; {suggestion}"
    return f"{file.place(*table, *keys)}: {'.'.join(map(str, (*table, *keys)))}: {reason}"
