"""Reads the settings: flags win over variables, variables over the file of `--config`, the file over defaults."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import AliasChoices, AliasGenerator, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from turnkeeper import config_file
from turnkeeper.config_file import ConfigFile
from turnkeeper.secret_variables import SUFFIX, value_of
from turnkeeper.setting_types import TOGETHER, UNREADABLE
from turnkeeper.settings import CONFIG_VARIABLE, SECRETS, Settings, choices_of, flag_of, shown, variables_of
from turnkeeper.start_errors import SettingError
from turnkeeper.telemetry.redact import HIDDEN, Redactor

_LONGEST_SHOWN: Final = 40
"""Characters of a wrong value that an error message shows."""
_CREDENTIALS: Final = re.compile(r"(?<=://).*@", re.DOTALL)
"""Of an address: also where a password has characters that an address cannot hold."""


def load(args: argparse.Namespace) -> Settings:
    """Returns the settings of these flags, of the process's variables, and of the file that either names.

    Raises SettingError, which names the flag, the variable, or the line of the file at fault.
    """
    flags = {name: value for name in Settings.model_fields if (value := getattr(args, name, None)) is not None}
    path = os.environ.get(CONFIG_VARIABLE) if args.config is None else args.config
    file = config_file.read(Path(path), Settings.model_fields) if path else None

    secrets = {name: value for name in SECRETS if (value := _from_file(name))}

    class SettingsSources(Settings, BaseSettings):
        model_config = SettingsConfigDict(
            alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(*variables_of(name))),
            validate_by_name=True,
            validate_by_alias=True,
            case_sensitive=True,
            env_ignore_empty=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            secret_files = InitSettingsSource(settings_cls, secrets)
            config = InitSettingsSource(settings_cls, dict(file.values) if file else {})
            return init_settings, env_settings, secret_files, config

    try:
        return Settings(**dict(SettingsSources(**flags)))
    except ValidationError as error:
        raise SettingError(_sentence(error.errors()[0], flags, file)) from None


def _from_file(name: str) -> str:
    """Returns the value of a setting whose variable names a file, or "" if none does. Raises SettingError."""
    named = [variable for variable in variables_of(name) if os.environ.get(variable + SUFFIX)]
    return value_of(os.environ, named[0]) if named else ""


def _sentence(error: ErrorDetails, flags: Mapping[str, Any], file: ConfigFile | None) -> str:
    """Returns what is wrong, and where."""
    context, value = error.get("ctx", {}), error["input"]
    if error["type"] == TOGETHER:
        return f"{_place(context['name'], flags, file)} {context['limit']}"
    name = next(name for name in Settings.model_fields if error["loc"][0] in (name, *variables_of(name)))
    match error["type"]:
        case "literal_error":
            reason = f"is {_quoted(value)}; it can be {', '.join(choices_of(name))}"
        case kind if kind == UNREADABLE:
            reason = f"is {_quoted(value)}; it must be {context['expected']}"
        case _:
            reason = str(context.get("error", "must be text in quotes"))
    return f"{_place(name, flags, file)} {reason}"


def _quoted(value: object) -> str:
    """Returns a wrong value for an error message: without what looks like a secret, and cut if it is long."""
    text = repr(value) if isinstance(value, str | list | dict) else shown(value)
    text = Redactor()(_CREDENTIALS.sub(f"{HIDDEN}@", text))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _place(name: str, flags: Mapping[str, Any], file: ConfigFile | None) -> str:
    """Returns where the value of a setting stands: its flag, its variable, or its line in the file."""
    if name in flags:
        return flag_of(name)
    names = (*variables_of(name), *(f"{variable}{SUFFIX}" for variable in variables_of(name)))
    variable = next((variable for variable in names if os.environ.get(variable)), "")
    return variable or f"{file.place(name) if file else ''}: {name}"
