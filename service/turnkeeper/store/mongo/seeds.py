"""Asks the hosts of MONGODB_URI one by one, before anything else.

The driver looks for a primary and waits; a wrong password or another set's name then look like a database that is down.
"""

import asyncio
import logging
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote_plus

from pymongo import MongoClient
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

from turnkeeper.store.mongo.indexes import ROUTER, UnfitDatabase

ANSWER_S: Final = 2.0
"""Seconds that a host has to connect, and as many to answer."""
PAUSE_S: Final = 0.25
"""Seconds between two rounds over all hosts."""
REFUSES_USER: Final = (11, 18, 8000)
"""MongoDB's error codes of a user or password that is wrong: UserNotFound, AuthenticationFailed, Atlas's own."""
UNKNOWN_COMMAND: Final = 59
_KEPT_OPTIONS: Final = ("tls", "ssl", "auth", "proxy", "compressors")
"""Beginnings of the options that a connection to one host needs."""
_IN_DATABASE: Final = ("SCRAM", "PLAIN")
"""Beginnings of the ways to log in for which the URI's database is the default of authSource."""
_TLS_REASON: Final = re.compile(r"\] ([^()\]]+) \(_ssl")

REPORT_S: Final = 10.0
"""Seconds between two log lines about a database that is waited for."""

logger = logging.getLogger(__name__)

Hello: TypeAlias = Mapping[str, Any]

NO_ADDRESS: Final = (
    "MONGODB_URI is not the address of a MongoDB: write mongodb://HOST:PORT,…/?replicaSet=NAME, "
    "with special characters of a password as %XX"
)

NO_SRV_ADDRESS: Final = "MONGODB_URI must name one host, without a port, behind mongodb+srv://"
UNFIT_OPTIONS: Final = (
    "options of MONGODB_URI contradict each other, or a file that one of them names holds no certificate: "
    "check those for TLS, for the login and for the kind of connection"
)


@dataclass(frozen=True, slots=True)
class _Diagnosis:
    """What one host's answer means. Without a problem the start can go on."""

    problem: str = ""
    final: bool = False
    """True if waiting does not help."""
    answers: bool = True


def check_options(uri: str) -> None:
    """Raises UnfitDatabase for an option of the URI that the driver does not know or cannot use. Shows no value.

    With an `@` behind the first `?`, that may be the end of a password: then no part of it is shown.
    """
    options = uri.partition("?")[2]
    for option in filter(None, re.split("[&;]", options)):
        name = option.partition("=")[0]
        if name.lower().startswith("srv"):
            continue  # the driver checks them with the address
        try:
            parse_uri(f"mongodb://localhost/?{option}", warn=False)
        except OSError as error:
            raise UnfitDatabase(f"{name} of MONGODB_URI names a file that cannot be read: {error.strerror}") from None
        except (PyMongoError, ValueError, TypeError):
            if "@" in options or not name:
                raise UnfitDatabase(NO_ADDRESS) from None
            raise UnfitDatabase(
                f"MONGODB_URI has the option {name}, which the driver does not know or whose value it cannot use"
            ) from None


def hosts_of(uri: str) -> str:
    """Returns the hosts that a usable URI names, without its user and its password."""
    return re.split("[/?]", uri.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]


def why_unusable(uri: str) -> str:
    """Returns what is wrong with a URI of which the driver makes no client, although it knows the options."""
    address = uri.partition("?")[0]
    try:
        hosts = parse_uri(address.replace("+srv://", "://", 1))["nodelist"]
    except (PyMongoError, ValueError):
        return NO_ADDRESS
    is_one_name = len(hosts) == 1 and not re.search(r":\d+(?:/|$)", address)
    return UNFIT_OPTIONS if is_one_name or "+srv://" not in address else NO_SRV_ADDRESS


async def check(uri: str, *, patience: float) -> None:
    """Returns once a host of the URI answers and knows a primary.

    Raises UnfitDatabase with what to do: at once if waiting does not help, else after `patience` seconds.
    """
    report_at = time.monotonic()
    deadline = report_at + patience
    try:
        parsed = await asyncio.to_thread(parse_uri, uri)
    except PyMongoError:
        raise UnfitDatabase("the DNS records of MONGODB_URI cannot be read: check its name, and the network") from None
    while True:
        diagnoses = await _ask_all(parsed)
        if not all(diagnosis.problem for diagnosis in diagnoses):
            return
        worst = max(diagnoses, key=lambda diagnosis: (diagnosis.final, diagnosis.answers))
        now = time.monotonic()
        if worst.final or now >= deadline:
            raise UnfitDatabase(worst.problem)
        if now >= report_at:
            report_at = now + REPORT_S
            logger.warning("the start waits for the database, %.0f s at most: %s", deadline - now, worst.problem)
        await asyncio.sleep(PAUSE_S)


async def _ask_all(parsed: Mapping[str, Any]) -> Sequence[_Diagnosis]:
    """Returns what each host's answer means, or only the first diagnosis without a problem."""
    asking = [asyncio.create_task(_ask(host, port, parsed)) for host, port in parsed["nodelist"]]
    diagnoses = []
    try:
        for answer in asyncio.as_completed(asking):
            diagnosis = await answer
            if not diagnosis.problem:
                return [diagnosis]
            diagnoses.append(diagnosis)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return diagnoses


async def _ask(host: str, port: int | None, parsed: Mapping[str, Any]) -> _Diagnosis:
    if "proxyHost" not in parsed["options"] and (reason := await _why_no_connection(host, port)):
        at = _shown(host, port)
        return _Diagnosis(f"no database answers at {at}: {reason}. Check MONGODB_URI, and that it runs", answers=False)
    return await asyncio.to_thread(_hello, host, port, parsed)


def _hello(host: str, port: int | None, parsed: Mapping[str, Any]) -> _Diagnosis:
    """Connects to one host and logs in."""
    options = parsed["options"]
    kept = {name: value for name, value in options.items() if name.lower().startswith(_KEPT_OPTIONS)}
    if parsed["username"]:
        kept["username"] = parsed["username"]
    if parsed["password"]:
        kept["password"] = parsed["password"]
    if parsed["database"] and options.get("authMechanism", "SCRAM").startswith(_IN_DATABASE):
        kept = {"authSource": parsed["database"], **kept}
    client = MongoClient[dict[str, Any]](
        host if port else f"mongodb://{quote_plus(host)}",
        port,
        directConnection=True,
        serverMonitoringMode="poll",  # needs no second connection
        connectTimeoutMS=ANSWER_S * 1000,
        serverSelectionTimeoutMS=ANSWER_S * 1000,
        timeoutMS=ANSWER_S * 1000,
        appname="turnkeeper",
        **kept,
    )
    at = _shown(host, port)
    try:
        return _diagnosis_of(at, client.admin.command("hello"), set_name=options.get("replicaSet", ""))
    except PyMongoError as error:
        driver_text = [str(server.error) for server in client.topology_description.server_descriptions().values()]
        return _diagnosis_of_error(at, error, driver_text=" ".join(driver_text))
    finally:
        client.close()


def _shown(host: str, port: int | None) -> str:
    return f"{host}:{port}" if port else host


async def _why_no_connection(host: str, port: int | None) -> str:
    """Returns "" if the host accepts a connection; else why not. Without a port, the host is a socket's path."""
    try:
        async with asyncio.timeout(ANSWER_S):
            connect = asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
            _, writer = await connect
    except TimeoutError:
        return f"no connection within {ANSWER_S:g} s"
    except (socket.gaierror, UnicodeError):
        return "this name cannot be resolved"
    except OSError as error:
        return "the connection is refused" if isinstance(error, ConnectionRefusedError) else str(error.strerror)
    writer.close()
    return ""


def _diagnosis_of(at: str, hello: Hello, *, set_name: str) -> _Diagnosis:
    name = hello.get("setName", "")
    if hello.get("msg") == ROUTER:
        wrong = f"{at} is a router of a sharded cluster: leave out replicaSet in MONGODB_URI"
        return _Diagnosis(wrong if set_name else "", final=True)
    if not name and hello.get("isreplicaset"):
        return _Diagnosis(f"the replica set of {at} has no members yet: run rs.initiate() there once")
    if not name:
        return _Diagnosis(
            f"the database at {at} is a single server: transactions need a replica set; start it with --replSet",
            final=True,
        )
    if set_name and set_name != name:
        return _Diagnosis(
            f"{at} is in the replica set {name}, and MONGODB_URI asks for {set_name}: write replicaSet={name}",
            final=True,
        )
    if not hello.get("primary"):
        return _Diagnosis(
            f"the replica set {name} has no primary: a majority of its members must be up and reach each other; "
            f"{at} answers"
        )
    return _Diagnosis()


def _diagnosis_of_error(at: str, error: PyMongoError, *, driver_text: str) -> _Diagnosis:
    """`driver_text`: the driver's own words about the host, which are not shown."""
    if isinstance(error, OperationFailure) and error.code in REFUSES_USER:
        return _Diagnosis(
            f"{at} refuses the user or the password of MONGODB_URI: check both, and authSource; special characters are "
            "written as %XX",
            final=True,
        )
    if isinstance(error, ConfigurationError) or getattr(error, "code", 0) == UNKNOWN_COMMAND:
        return _Diagnosis(f"{at} has a version of MongoDB that the driver does not support: use 7 or 8", final=True)
    if "SSL" in driver_text:
        reason = _TLS_REASON.search(driver_text)
        return _Diagnosis(
            f"{at} answers, but TLS fails ({reason[1] if reason else 'no handshake'}): check the TLS options of "
            "MONGODB_URI",
            final=True,
        )
    return _Diagnosis(
        f"{at} accepts connections, but does not answer as a MongoDB: check its port, and whether it expects TLS "
        "(tls=true)"
    )
