"""Sends the commands of a transaction together, reads their replies, and commits over the same connection.

The database works on the commands of one connection one after the other. If each is only sent once the one before is
answered, each costs a round trip, and a switch of threads here and there.

The driver promises no call for that: some of what is used of it here is private, and may change with any version. One
with which this was not tried is given one command after the other.
"""
# ruff: noqa: SLF001

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Protocol, Self, TypeVar, cast

import pymongo
from bson import decode
from bson.codec_options import DEFAULT_CODEC_OPTIONS
from pymongo.errors import DocumentTooLarge, ExecutionTimeout, ProtocolError, PyMongoError
from pymongo.read_preferences import ReadPreference

from turnkeeper.store.mongo.client import MAJORITY, ClientSession, Connection, Document

TRIED: Final = (4, 20)
"""The version of the driver with which this was tried."""
CAN_SEND_TOGETHER: Final = pymongo.version_tuple[:2] == TRIED
"""The driver is of that version."""
if CAN_SEND_TOGETHER:
    from pymongo import _telemetry, helpers_shared, message
    from pymongo.client_session_shared import _TxnState

_SHARED: Final = ("lsid", "txnNumber", "autocommit", "maxTimeMS")
"""Fields of a transaction's first command that the others have as well."""


_HEADER: Final = struct.Struct("<iiiiIB")
"""Before a reply's document: length, id, the request's number, code, flags, and the kind of what follows."""
_MESSAGE: Final = 2013
"""The code of a message that is not compressed."""
_MOST_BYTES: Final = 64 * 1024


class Command(Protocol):
    """A command of a transaction."""

    def document(self) -> Document:
        """Returns the command, with its name as the first field."""
        ...

    def halves(self) -> Sequence[Self]:
        """Returns two commands that do the same together. Empty if there are none."""
        ...

    def is_done(self, reply: Document) -> bool:
        """Returns True if the reply shows that the command did all that it should."""
        ...


C = TypeVar("C", bound=Command)


class CommandExchange:
    """Sends the commands of one transaction and its commit, blocking this thread. A context manager.

    All go over one connection, which it has from the first command to its end.
    """

    def __init__(self, connection: Connection, session: ClientSession) -> None:
        """Connects at the first command."""
        self._connection = connection
        self._session: Any = session.delegate
        self._together: _Together | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back. Another command takes one again."""
        self._leave(None)

    def send(self, commands: Iterable[C]) -> Sequence[tuple[C, Document]]:
        """Sends the commands. Returns their replies, up to the first that is not done.

        Those after that one may have reached the database, so the transaction must be aborted. A command that is too
        large for the driver is sent in parts. Raises PyMongoError if one is refused, and DocumentTooLarge before any
        was sent.
        """
        if CAN_SEND_TOGETHER:
            if self._together is None:
                self._together = _Together(self._connection, self._session)
            try:
                return self._together.of(commands)
            except BaseException as error:
                self._leave(error)
                raise
        answered: list[tuple[C, Document]] = []
        for command in commands:
            for part, reply in self._one_by_one(command):
                answered.append((part, reply))
                if not part.is_done(reply):
                    return answered
        return answered

    def commit(self) -> None:
        """Commits. Raises PyMongoError as the driver does; the outcome may be unknown then.

        After any error the commit is sent once more, by the driver, as to a commit whose answer was lost.
        """
        together = self._together
        if together is not None and together.may_commit:
            try:
                together.commit()
            except PyMongoError as error:
                self._leave(error)
            except BaseException as error:
                self._leave(error)
                raise
            else:
                return
        self._session.commit_transaction()

    def _one_by_one(self, command: C) -> Iterator[tuple[C, Document]]:
        database: Any = self._connection.database.delegate
        try:
            yield command, database.command(command.document(), session=self._session)
        except DocumentTooLarge:  # of the driver, before it has sent anything
            if not (halves := command.halves()):
                raise
            for half in halves:
                yield from self._one_by_one(half)

    def _leave(self, error: BaseException | None) -> None:
        together, self._together = self._together, None
        if together is not None:
            together.close(error)


@dataclass(frozen=True, slots=True)
class _Commit:
    """The command that commits a transaction."""

    def document(self) -> Document:
        return {"commitTransaction": 1, "writeConcern": MAJORITY.document}

    def halves(self) -> Sequence[Self]:
        return ()

    def is_done(self, reply: Document) -> bool:  # noqa: ARG002 - an error is raised
        return True


@dataclass(frozen=True, slots=True)
class _Request(Generic[C]):
    """A command as it is sent."""

    command: C
    name: str
    number: int
    content: bytes
    largest: int
    """Bytes of its largest document."""
    telemetry: Any


class _Together:
    """Sends commands of one transaction together, over one connection."""

    def __init__(self, connection: Connection, session: Any) -> None:
        """Connects. Raises PyMongoError."""
        self._client: Any = connection.client.delegate
        self._session = session
        self._database = connection.database.name
        self._checkout = self._client._conn_for_writes(session, "transaction")
        self._conn: Any = self._checkout.__enter__()

    def close(self, error: BaseException | None) -> None:
        """Gives the connection back, after this error if there was one."""
        self._checkout.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def of(self, commands: Iterable[C]) -> Sequence[tuple[C, Document]]:
        """Sends the commands and returns their replies, as `CommandExchange.send` does."""
        answered: list[tuple[C, Document]] = []
        conn = self._conn
        requests = self._requests(conn, commands, self._database)
        if not requests:
            return answered
        self._session._transaction.set_in_progress()
        conn.send_message(
            b"".join(request.content for request in requests), max(request.largest for request in requests)
        )
        for request, reply in zip(requests, self._replies(conn, requests), strict=True):
            helpers_shared._check_command_response(reply, conn.max_wire_version)
            answered.append((request.command, reply))
            if not request.command.is_done(reply):
                break
        return answered

    @property
    def may_commit(self) -> bool:
        """Returns True for the first commit of a transaction that a router has no part in."""
        transaction = self._session._transaction
        is_first = transaction.state is _TxnState.IN_PROGRESS and not transaction.attempt
        return is_first and not transaction.recovery_token and self._session._pinned_address is None

    def commit(self) -> None:
        """Sends the commit. Raises PyMongoError; the transaction is then as after a commit whose answer was lost."""
        conn, transaction = self._conn, self._session._transaction
        transaction.attempt += 1
        try:
            requests = self._requests(conn, (_Commit(),), "admin")
            conn.send_message(requests[0].content, requests[0].largest)
            (reply,) = self._replies(conn, requests)
            helpers_shared._check_command_response(reply, conn.max_wire_version, parse_write_concern_error=True)
        finally:
            transaction.state = _TxnState.COMMITTED

    def _requests(self, conn: Any, commands: Iterable[C], database: str) -> Sequence[_Request[C]]:
        """Returns the commands as they are sent to a database.

        All have the transaction and the time limit of the first one.
        """
        requests: list[_Request[C]] = []
        shared: Document | None = None
        left = deque(commands)
        while left:
            command = left.popleft()
            document = command.document()
            if shared is None:
                self._session._apply_to(document, False, ReadPreference.PRIMARY, conn)
                conn.send_cluster_time(document, self._session, self._client)
                conn.apply_timeout(document)
                shared = {name: document[name] for name in _SHARED if name in document}
            else:
                document |= shared
            conn.add_server_api(document)
            number, content, size, largest = message._op_msg(
                0, document, database, ReadPreference.PRIMARY, DEFAULT_CODEC_OPTIONS, ctx=conn.compression_context
            )
            if size > conn.max_bson_size + message._COMMAND_OVERHEAD:
                if not (halves := command.halves()):
                    raise DocumentTooLarge(f"a document of {size} bytes")
                left.extendleft(reversed(halves))
                if not requests:
                    shared = None
                continue
            telemetry = _telemetry._CommandTelemetry(
                self._client._topology_id, conn, conn.listeners, document, database, number, None
            )
            telemetry.started(document, ensure_db=False)
            requests.append(_Request(command, next(iter(document)), number, content, largest, telemetry))
        return requests

    def _replies(self, conn: Any, requests: Sequence[_Request[Any]]) -> Sequence[Document]:
        """Returns all replies. If one does not come, the connection is closed: it must not be used again."""
        replies: list[Document] = []
        receive = _Receiver(conn).next if conn.compression_context is None else partial(_compressed, conn)
        try:
            for request in requests:
                reply = receive(request.number)
                replies.append(reply)
                if reply.get("ok"):
                    request.telemetry.succeeded(reply, request.name, False)
                else:
                    request.telemetry.failed(reply, request.name, True)
        except BaseException:
            conn.close_conn("error")
            raise
        finally:
            if replies:
                self._client._process_response(replies[-1], self._session)
        return replies


def _compressed(conn: Any, number: int) -> Document:
    reply: Document = conn.receive_message(number).unpack_response(codec_options=DEFAULT_CODEC_OPTIONS)[0]
    return reply


class _Receiver:
    """Reads replies that are not compressed, as many at once as have arrived.

    The driver reads the header and the content of each by themselves, and the interpreter changes hands at each read.
    """

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._unread = b""

    def next(self, number: int) -> Document:
        """Returns the reply to the request of this number. Raises ProtocolError for anything else."""
        length = _HEADER.size
        while True:
            if len(self._unread) >= length:
                length, _, answered, code, flags, kind = _HEADER.unpack_from(self._unread)
                if (answered, code, flags, kind) != (number, _MESSAGE, 0, 0) or length <= _HEADER.size:
                    raise ProtocolError("not the reply that was expected")
                if len(self._unread) >= length:
                    break
            self._unread += self._read()
        reply, self._unread = self._unread[_HEADER.size : length], self._unread[length:]
        return decode(reply)

    def _read(self) -> bytes:
        conn = self._conn
        try:
            conn.apply_timeout(None)  # what is left of the time
            if data := conn.conn.get_conn.recv(_MOST_BYTES):
                return cast(bytes, data)
            error: Exception = OSError("connection closed")
        except ExecutionTimeout:
            error = TimeoutError("timed out")
        except OSError as broken:
            error = broken
        conn._raise_connection_failure(error)
        raise error  # which the line before has done
