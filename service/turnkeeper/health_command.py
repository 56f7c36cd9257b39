"""The command `turnkeeper health`, for probes that run a program. It imports little: each probe starts it anew."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from turnkeeper import durations

SERVING: Final = 0
NOT_SERVING: Final = 1
WRONG: Final = 2
"""The exit status if an argument is wrong: a file that cannot be read, a service that the server does not know."""
NO_ANSWER: Final = 3

DESCRIPTION: Final = """\
Ask a server for the health of a service. The address is that of the health port
if TURNKEEPER_HEALTH_PORT is set, else that of the API; both as `serve` takes them
from its variables. --profile and the variables TURNKEEPER_CLIENT_… name a service
as for the commands that use it, and count first.
"""
EPILOG: Final = """\
Exit status: 0 SERVING, 1 not SERVING, 2 an argument is wrong or the server does
not know the service, 3 there was no answer. Without --service it is readiness;
`--service liveness` is SERVING until the process ends.
"""
PORT: Final = "50051"
"""The default of `serve --port`. That module has libraries that take longer than the whole probe."""
_PREFIX: Final = "TURNKEEPER_"
_UNIX: Final = "unix:"
_LOOPBACK: Final = "127.0.0.1"
_METHOD: Final = "/grpc.health.v1.Health/Check"
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104 - none is bound here
"""The loopback address by which a server is reached that listens on every address."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--service", default="", metavar="NAME", help="name of the service; without it, readiness")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="address of the server, or unix:PATH")
    parser.add_argument("--profile", metavar="NAME", help="profile that completes what is not given")
    parser.add_argument("--json", action="store_true", help="print the response as JSON")
    parser.add_argument("--timeout", default="1s", help="how long the answer may take [1s]")
    parser.add_argument("--tls-ca", metavar="FILE", help="file of the server's CA, PEM: connect by TLS")
    parser.add_argument("--tls-certificate", metavar="FILE", help="file of a client's certificate, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="file of the certificate's key, PEM")
    parser.add_argument("--tls-name", metavar="NAME", help="name in the server's certificate, if it is not the address")


def run(args: argparse.Namespace) -> int:
    """Asks once, prints the status, and returns the exit status."""
    try:
        timeout = durations.parse(args.timeout).total_seconds()
    except ValueError:
        return _fail(f"--timeout must be a duration such as {durations.EXAMPLES}", WRONG)
    if bool(args.tls_certificate) != bool(args.tls_key):
        return _fail("--tls-certificate and --tls-key need each other", WRONG)
    if (args.tls_certificate or args.tls_name) and not args.tls_ca:
        return _fail("--tls-certificate, --tls-key and --tls-name need --tls-ca", WRONG)
    names = (args.tls_ca, args.tls_key, args.tls_certificate)
    try:
        files = [Path(name).read_bytes() if name else None for name in names]
    except OSError as error:
        return _fail(f"{error.filename} cannot be read: {error.strerror}", WRONG)
    return _ask(args.address or address_of(os.environ), args, files, timeout)


def address_of(environ: Mapping[str, str]) -> str:
    """Returns where a server with these variables can be reached: on its health port, or on that of its API."""

    def value(name: str) -> str:
        return environ.get(_PREFIX + name, "")

    host, port = value("HOST") or _LOOPBACK, value("HEALTH_PORT")
    if port:
        host = value("HEALTH_HOST") or (_LOOPBACK if host.startswith(_UNIX) else host)
    elif host.startswith(_UNIX):
        return host
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{_ANY_ADDRESS.get(host, host)}:{port or value('PORT') or PORT}"


def _ask(address: str, args: argparse.Namespace, files: Sequence[bytes | None], timeout: float) -> int:
    """Asks the server, and returns the exit status. `files`: the CA, the key and the certificate."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # it reports failures past us
    import grpc  # noqa: PLC0415 - a wrong argument is reported before

    from turnkeeper.pb.grpc.health.v1 import health_pb2  # noqa: PLC0415

    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    if args.tls_ca:
        options += [("grpc.ssl_target_name_override", args.tls_name)] if args.tls_name else []
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options)
    else:
        channel = grpc.insecure_channel(address, options)
    try:
        response = _check(channel, args.service, timeout)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return _fail(f"{address} has no service {args.service!r}", WRONG)
        advice = "" if args.tls_ca else "; if it expects TLS, pass --tls-ca, or ask its --health-port"
        return _fail(f"{address} did not answer ({error.code().name}){advice}", NO_ANSWER)
    finally:
        channel.close()
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    print(f'{{"status": "{name}"}}' if args.json else name)
    return SERVING if response.status == health_pb2.HealthCheckResponse.SERVING else NOT_SERVING


def status_of(address: str, *, timeout: float = 1.0) -> int:
    """Returns the status of readiness at an address without TLS, as an exit status of this module. Prints nothing."""
    import grpc  # noqa: PLC0415

    from turnkeeper.pb.grpc.health.v1 import health_pb2  # noqa: PLC0415

    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]) as channel:
        try:
            response = _check(channel, "", timeout)
        except grpc.RpcError:
            return NO_ANSWER
    return SERVING if response.status == health_pb2.HealthCheckResponse.SERVING else NOT_SERVING


def _check(channel: Any, service: str, timeout: float) -> Any:
    """Asks for the health of a service. Raises grpc.RpcError."""
    from turnkeeper.pb.grpc.health.v1 import health_pb2  # noqa: PLC0415

    check = channel.unary_unary(
        _METHOD,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)


def _fail(reason: str, status: int) -> int:
    print(f"turnkeeper health: {reason}", file=sys.stderr)
    return status
