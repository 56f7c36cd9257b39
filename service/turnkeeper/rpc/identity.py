"""Who calls. With identity `none` everybody is the principal `default` of the tenant `default`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str
    principal: str


DEFAULT_CALLER = Caller(tenant="default", principal="default")
