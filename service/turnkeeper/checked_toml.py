"""Reads the content of a watched file in TOML into a pydantic model. What is wrong is named by file, line and key."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from turnkeeper.toml_file import TomlError, TomlFile
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
    try:
        return file, model.model_validate(file.values)
    except ValidationError as error:
        raise BadFile(_problem(file, error)) from None


def _problem(file: TomlFile, error: ValidationError) -> str:
    """Returns the first problem, with its place and without the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    keys = list(first["loc"])
    return f"{file.place(*keys)}: {'.'.join(map(str, keys))}: {first['msg'].removeprefix('Value error, ')}"
