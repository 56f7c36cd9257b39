"""How a command reaches the service: by flags, else by variables, else by a profile, else on this machine."""

import argparse
import difflib
import inspect
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Final, Self

import typer

from turnkeeper import toml_file
from turnkeeper.start_errors import SettingError
from turnkeeper.toml_file import TomlError, TomlFile
from turnkeeper_client import Client, Credentials, ResumePolicy

ADDRESS: Final = "127.0.0.1:50051"
"""Where `turnkeeper serve` and `turnkeeper dev` listen if nothing else is set."""
PREFIX: Final = "TURNKEEPER_CLIENT_"
"""How the variables begin: those of the server have TURNKEEPER_ alone, and other certificates."""
MAX_BYTES: Final = 65_536
"""Bytes of a profile file or a token, at most."""
_PANEL: Final = "Connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The address of a service, and what a command calls it with."""

    address: str = ADDRESS
    token_file: Path | None = None
    """Its text is the token; read again when the token ends."""
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @classmethod
    def chosen(cls, given: Mapping[str, str | None], *, profile: str | None = None) -> Self:
        """Returns the connection of these flags and variables, completed by the profile; None or "" is not set.

        Without a name the profile is the file's `default`, if it has one. Raises SettingError.
        """
        values: dict[str, str | Path] = {**_profile(profile, os.environ), **{k: v for k, v in given.items() if v}}
        for name, value in values.items():
            if name != "address":
                values[name] = Path(value).expanduser()
        return cls(**values)  # type: ignore[arg-type]  # address is text, the others are paths

    def open(self, *, resume: ResumePolicy | None = None) -> Client:
        """Returns a client, to be closed by the caller. Called in a running event loop. Raises SettingError."""
        address = self.address
        if "://" in address and address.startswith(("http", "grpc", "tcp")):
            raise SettingError(f"--address is {address}; write it without {address.partition('://')[0]}://")
        token = None if self.token_file is None else self._token
        if token is not None:
            token()  # a file that cannot be read is reported before the first call
        try:
            credentials = Credentials(
                ca=_pem(self.tls_ca, "--tls-ca"),
                certificate=_pem(self.tls_certificate, "--tls-certificate"),
                key=_pem(self.tls_key, "--tls-key"),
                token=token,
            )
            return Client(address, credentials=credentials, resume=resume or ResumePolicy())
        except ValueError as error:
            reason = str(error).replace("give ca, or config='mesh' with a sidecar", "pass --tls-ca")
            raise SettingError(reason.replace("certificate and key", "--tls-certificate and --tls-key")) from None

    def _token(self) -> str:
        assert self.token_file is not None
        return _read(self.token_file, "--token-file").decode("utf-8", "replace").strip()


def complete(args: argparse.Namespace) -> None:
    """Fills in what is not given of the address and the files of TLS: by the variables, else by the profile.

    Raises SettingError.
    """
    given = {name: getattr(args, name, None) or os.environ.get(f"{PREFIX}{name.upper()}") for name in NAMES}
    profile = args.profile or os.environ.get(f"{PREFIX}PROFILE")
    chosen = ConnectionOptions.chosen(given, profile=profile)
    for field in fields(chosen):
        if field.name in args:
            value = getattr(chosen, field.name)
            setattr(args, field.name, value and str(value))


NAMES: Final = tuple(field.name for field in fields(ConnectionOptions))
_HELP: Final = {
    "address": ("HOST:PORT", f"address of the service, or unix:PATH [{ADDRESS}]"),
    "token_file": ("FILE", "file of a token; read again when the token ends"),
    "tls_ca": ("FILE", "file of the server's CA, PEM: connect by TLS"),
    "tls_certificate": ("FILE", "file of a client's certificate, PEM"),
    "tls_key": ("FILE", "file of the certificate's key, PEM"),
    "profile": ("NAME", "profile that completes what is not given"),
}
assert set(_HELP) == {*NAMES, "profile"}


def parameters() -> list[inspect.Parameter]:
    """Returns the options that each command has, for typer."""
    return [_parameter(name, metavar, text) for name, (metavar, text) in _HELP.items()]


def typed_flags(given: Mapping[str, str | None], environ: Mapping[str, str]) -> str:
    """Returns the flags of these options as a shell takes them, without those that a variable gives in any case.

    A command that is printed for the reader needs the same flags.
    """
    flags = ""
    for name, value in given.items():
        usual = environ.get(f"{PREFIX}{name.upper()}") or (ADDRESS if name == "address" else "")
        if value and value != usual:
            flags += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    return flags


def help_texts() -> Mapping[str, str]:
    """Returns what each option means, by its name."""
    return {name: text for name, (_, text) in _HELP.items()}


def profile_file(environ: Mapping[str, str]) -> Path:
    """Returns where the profiles are: TURNKEEPER_CLIENT_PROFILES, or turnkeeper/profile.toml of the user's settings."""
    if named := environ.get(f"{PREFIX}PROFILES"):
        return Path(named)
    folder = environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "turnkeeper" / "profile.toml"


def _parameter(name: str, metavar: str, text: str) -> inspect.Parameter:
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        envvar=f"{PREFIX}{name.upper()}",
        help=text,
        metavar=metavar,
        rich_help_panel=_PANEL,
        show_default=False,
        show_envvar=False,
    )
    annotation = Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _profile(name: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the values of a profile; none if none is named and the file has no default."""
    path = profile_file(environ)
    if not name and not path.exists():
        return {}
    try:
        file = toml_file.read(path, max_bytes=MAX_BYTES)
    except TomlError as error:
        reason = f"{path}:{error.line}: this is not TOML: {error}" if error.line else f"{path} cannot be read: {error}"
        raise SettingError(f"the profiles are not known: {reason}") from None
    _check(file)
    profiles = file.values.get("profile", {})
    name = name or file.values.get("default")
    if not name:
        return {}
    if name not in profiles:
        known = ", ".join(profiles) or "none"
        raise SettingError(f"{path} has no profile {name!r}; it has {known}. Add [profile.{name}] to it")
    return {key: _from(path, key, value) for key, value in profiles[name].items()}


def _from(path: Path, key: str, value: str) -> str:
    """Returns a value; a path in it is relative to the profile file's folder."""
    return value if key == "address" else str(path.parent / Path(value).expanduser())


def _check(file: TomlFile) -> None:
    """Raises SettingError for a key that is not known, and for a value other than text."""
    _check_keys(file, (), file.values, ("default", "profile"))
    profiles = file.values.get("profile", {})
    if not isinstance(profiles, dict):
        raise SettingError(f"{file.place('profile')}: profile must be tables such as [profile.local]")
    if not isinstance(file.values.get("default", ""), str):
        raise SettingError(f"{file.place('default')}: default must be the name of a profile in quotes")
    for name, profile in profiles.items():
        if not isinstance(profile, dict):
            raise SettingError(f"{file.place('profile', name)}: {name} must be a table such as [profile.local]")
        _check_keys(file, ("profile", name), profile, NAMES)
        for key, value in profile.items():
            if not isinstance(value, str):
                raise SettingError(f"{file.place('profile', name, key)}: {key} must be text in quotes")


def _check_keys(file: TomlFile, table: tuple[str, ...], values: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else f"; it can be {', '.join(known)}"
            raise SettingError(f"{file.place(*table, key)}: there is no key {key!r:.42}{suggestion}")


def _pem(path: Path | None, flag: str) -> bytes | None:
    return None if path is None else _read(path, flag)


def _read(path: Path, flag: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SettingError(f"{flag} names {path}, which cannot be read: {error.strerror}") from None
    if not content.strip() or len(content) > MAX_BYTES:
        raise SettingError(f"{flag} names {path}, which is empty or has more than {MAX_BYTES:,} bytes")
    return content
