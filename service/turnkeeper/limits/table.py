"""The limits file. Its format is published in docs/operations/limits-and-rates.md."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints

from turnkeeper.checked_toml import checked_toml
from turnkeeper.limits.bucket import CallRate
from turnkeeper.limits.profile import BUILT_IN, DEFAULT, Cap, Group, Profile, Scope, rate_of
from turnkeeper.toml_file import TomlFile
from turnkeeper.watched_file import BadFile

MAX_BYTES: Final = 4 << 20
"""The greatest size of the file. A longer one is a mistake, such as a log or a device."""
MOST_A_MINUTE: Final = 10_000_000
MOST_AT_ONCE: Final = 1_000_000

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
UNLIMITED: Final = "unlimited"
"""The value that removes a limit of the profile on which this one is based."""


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _read_rate(value: object) -> CallRate | None:
    """Returns a rate, or None for UNLIMITED."""
    if value == UNLIMITED:
        return None
    if _is_count(value, MOST_A_MINUTE):
        return rate_of(value)
    if isinstance(value, dict) and value.keys() == {"per_minute", "burst"}:
        per_minute, burst = value["per_minute"], value["burst"]
        if _is_count(per_minute, MOST_A_MINUTE) and _is_count(burst, MOST_A_MINUTE):
            return CallRate(per_minute, burst)
    raise ValueError(
        f'must be calls a minute, from 1 to {MOST_A_MINUTE:,}, or {{ per_minute = 60, burst = 10 }}, or "{UNLIMITED}"'
    )


def _read_count(value: object) -> int | None:
    """Returns a number, or None for UNLIMITED."""
    if value == UNLIMITED:
        return None
    if _is_count(value, MOST_AT_ONCE):
        return value
    raise ValueError(f'must be a whole number from 1 to {MOST_AT_ONCE:,}, or "{UNLIMITED}"')


_Rates = Mapping[_Name, Annotated[CallRate | None, PlainValidator(_read_rate)]]
_Count = Annotated[int | None, PlainValidator(_read_count)]


class _StrictPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _ProfileRow(_StrictPart):
    based_on: _Name = "default"
    principal: _Rates = {}
    tenant: _Rates = {}
    streams: _Count = None
    waits: _Count = None
    turns_under_way: _Count = None
    turns_queued: _Count = None


class _Contents(_StrictPart):
    mode: Literal["enforce", "shadow"] = "enforce"
    profile: _Name = "default"
    profiles: Annotated[Mapping[_Name, _ProfileRow], Field(max_length=1000)] = {}
    tenants: Annotated[Mapping[_Name, _Name], Field(max_length=100_000)] = {}


@dataclass(frozen=True, slots=True)
class LimitTable:
    """The limits of all tenants."""

    is_shadow: bool = False
    """True: calls beyond a limit are counted, and admitted."""
    others: Profile = DEFAULT
    """Of the tenants that are not named."""
    tenants: Mapping[str, Profile] = field(default_factory=dict)

    def of(self, tenant: str) -> Profile:
        """Returns the limits of a tenant."""
        return self.tenants.get(tenant, self.others)


def parse(path: Path, content: bytes, *, methods: Collection[str]) -> LimitTable:
    """Returns the table of a file's content. `methods`: the names that a rate may have, beside those of groups.

    Raises BadFile, which names file, line and key.
    """
    file, values = checked_toml(path, content, _Contents)
    profiles = _Profiles(file, values.profiles, frozenset(methods) | {group.value for group in Group})
    return LimitTable(
        is_shadow=values.mode == "shadow",
        others=profiles.get(values.profile, "profile"),
        tenants={tenant: profiles.get(name, "tenants", tenant) for tenant, name in values.tenants.items()},
    )


class _Profiles:
    """The profiles of the file, and those that are built in."""

    def __init__(self, file: TomlFile, own: Mapping[str, _ProfileRow], names: Collection[str]) -> None:
        """`names`: those that a rate may have. Raises BadFile."""
        self._file, self._own, self._names = file, own, names
        self._made: dict[str, Profile] = dict(BUILT_IN)
        for name, profile in own.items():
            if name in BUILT_IN:
                raise self._bad("is built in; give yours another name", "profiles", name)
            self._made[name] = self._profile(name, profile)

    def get(self, name: str, *keys: str) -> Profile:
        """Returns a profile. Raises BadFile, with the place of `keys`, if there is none of this name."""
        if name not in self._made:
            raise self._bad(f"there is no profile {name} before this line", *keys)
        return self._made[name]

    def _profile(self, name: str, profile: _ProfileRow) -> Profile:
        result = self.get(profile.based_on, "profiles", name, "based_on")
        for scope in Scope:
            rates: _Rates = getattr(profile, scope.value)
            for limit in rates:
                if limit not in self._names:
                    groups = ", ".join(group.value for group in Group)
                    what = f"it must be the name of a method, or one of {groups}"
                    raise self._bad(what, "profiles", name, scope.value, limit)
            result = result.with_rates({(scope, limit): rate for limit, rate in rates.items()})
        return result.with_caps(
            {cap: getattr(profile, cap.value) for cap in Cap if cap.value in profile.model_fields_set}
        )

    def _bad(self, what: str, *keys: str) -> BadFile:
        return BadFile(f"{self._file.place(*keys)}: {'.'.join(keys)}: {what}")
