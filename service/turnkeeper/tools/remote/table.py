"""Reads the [[server]] tables of tool servers over gRPC."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from turnkeeper.key_files import UnfitKey
from turnkeeper.tools.catalogue import ToolServer
from turnkeeper.tools.contract import ServerSource
from turnkeeper.tools.remote.channel import RemoteServer, authorities
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.remote.tokens import CallTokens

MOST_KEYS: Final = 8
logger = logging.getLogger(__name__)


class GrpcTable(BaseModel):
    """The keys of such a table."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    grpc: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._\-\[\]:]+:[0-9]{1,5}$", max_length=300)]
    ca: str | None = None
    plaintext: bool = False
    keys: Annotated[list[str], Field(max_length=MOST_KEYS)] = []


def source_of(server: ToolServer, *, needs_keys: bool = False) -> RemoteTools:
    """Returns the source of a server, not connected. Raises BadFile for a table that cannot be used.

    `needs_keys`: one without `keys` is refused.
    """
    table = server.read(GrpcTable)
    if table.plaintext and table.ca is not None:
        server.refuse("ca", "has no meaning with plaintext = true; remove one of them")
    try:
        tokens = CallTokens.from_files([Path(key) for key in table.keys])
    except UnfitKey as unfit:
        server.refuse("keys", f"cannot be used: {unfit}")
    if needs_keys and not table.keys:
        server.refuse("grpc", "needs `keys` beside it: several processes publish them at one --jwks-port")
    if not table.keys:
        logger.warning(
            "the tool server %s has no `keys`: this process signs its calls with a key that no other replica has",
            server.name,
        )
    remote = RemoteServer(
        name=server.name, target=table.grpc, plaintext=table.plaintext, ca=_authorities(server, table)
    )
    return RemoteTools(remote, tokens)


def published(sources: Sequence[ServerSource]) -> Sequence[Mapping[str, str]]:
    """Returns the public keys of all of these that are reached over gRPC, each once."""
    keys = [key for source in sources if isinstance(source, RemoteTools) for key in source.tokens.key_set()]
    return list({key["kid"]: key for key in keys}.values())


def _authorities(server: ToolServer, table: GrpcTable) -> bytes | None:
    if table.ca is None:
        return None
    try:
        return authorities(Path(table.ca))
    except OSError as error:
        server.refuse("ca", f"cannot be read: {error.strerror}")
    except ValueError:
        server.refuse("ca", "has no certificate in PEM")
