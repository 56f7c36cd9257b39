"""TLS: what callers with wrong certificates meet, and that a renewed certificate needs no restart."""

import asyncio
import itertools
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from tests.calls import certificate
from tests.processes import until, until_call
from turnkeeper import app, dev_credentials
from turnkeeper.dev_credentials import Authority
from turnkeeper.start_errors import PortTaken, SettingError

SCRIPT = '[[reply]]\ntext = "Yes."'
NAMES = ("localhost", "127.0.0.1")
DAY = timedelta(days=1)


@dataclass(slots=True)
class Files:
    """The files of `turnkeeper credentials dev`."""

    folder: Path

    def settings(self, *, needs_certificate: bool = False) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "tls_certificate": self.folder / "server.pem",
            "tls_key": self.folder / "server-key.pem",
        }
        if needs_certificate:
            chosen |= {
                "identity": "mtls",
                "tls_client_ca": self.folder / "ca.pem",
                "principals": self.folder / "principals.toml",
            }
        return chosen

    @property
    def ca(self) -> bytes:
        return (self.folder / "ca.pem").read_bytes()

    def credentials(self, name: str) -> grpc.ChannelCredentials:
        return self.of(((self.folder / f"{name}.pem").read_bytes(), (self.folder / f"{name}-key.pem").read_bytes()))

    def of(self, pair: tuple[bytes, bytes]) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, pair[1], pair[0])

    def write(self, pair: tuple[bytes, bytes]) -> None:
        """Replaces the server's certificate and key."""
        for name, content in zip(("server.pem", "server-key.pem"), pair, strict=True):
            (self.folder / name).write_bytes(content)

    def server_pair(self, lifetime: timedelta = DAY) -> tuple[bytes, bytes]:
        names = [x509.DNSName("localhost"), *map(dev_credentials.general_name, NAMES[1:])]
        return Authority.kept(self.folder).issued("server", names=names, lifetime=lifetime)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    dev_credentials.write(tmp_path, {"ada": ["caller"]}, hosts=NAMES, lifetime=DAY)
    return Files(tmp_path)


@asynccontextmanager
async def serving(mongo_uri: str, database: str, **settings: Any) -> AsyncIterator[app.Running]:
    async with harness.scripted(SCRIPT) as model, harness.serving(mongo_uri, database, model, **settings) as running:
        yield running


async def status_of(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Returns the status of a health check on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if credentials is None:
        opened = aio.insecure_channel(address, options)
    else:
        opened = aio.secure_channel(address, credentials, options)
    async with opened as channel:
        try:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_a_failed_handshake_is_unavailable_and_disturbs_no_other(
    mongo_uri: str, database_name: str, files: Files
) -> None:
    own, foreign = Authority.kept(files.folder), Authority.new()
    bad = {
        "plain text": None,
        "no certificate": grpc.ssl_channel_credentials(files.ca),
        "wrong CA": files.of(certificate(foreign, "ada")),
        "expired": files.of(certificate(own, "ada", lifetime=timedelta(seconds=-1))),
        "unknown server": grpc.ssl_channel_credentials(
            foreign.certificate.public_bytes(Encoding.PEM), *reversed(certificate(own, "ada"))
        ),
    }
    async with serving(mongo_uri, database_name, **files.settings(needs_certificate=True)) as running:
        async with aio.secure_channel(running.address, files.credentials("ada")) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            for what, credentials in bad.items():
                assert await status_of(running.address, credentials) is grpc.StatusCode.UNAVAILABLE, what
                await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert not watch.done()
            watch.cancel()
        assert await status_of(running.address, files.credentials("ada")) is grpc.StatusCode.OK


async def test_renewed_certificates_are_served_without_a_failed_call(
    mongo_uri: str, database_name: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty rotations with key and certificate written apart, one bad pair among them; a new connection each 0.1 s."""
    caplog.set_level(logging.INFO, logger="turnkeeper")
    async with serving(mongo_uri, database_name, **files.settings()) as running:
        done = asyncio.Event()
        connecting = asyncio.create_task(_connect_until(done, running.address, files))
        for number in range(20):
            certificate_pem, key = (b"bad", b"bad") if number == 10 else files.server_pair()
            (files.folder / "server.pem").write_bytes(certificate_pem)
            await asyncio.sleep(0.2)  # the time between the two files is what this test is about
            (files.folder / "server-key.pem").write_bytes(key)
            if number == 10:
                await until(lambda: "has no certificate in PEM" in caplog.text)
                continue
            serial = x509.load_pem_x509_certificate(certificate_pem).serial_number
            await _until_served(serial, running, files)
        done.set()
        statuses = await connecting
    assert set(statuses) == {grpc.StatusCode.OK}
    assert len(statuses) >= 40
    assert "is not the key" not in caplog.text
    assert caplog.text.count("new connections get the certificate") == 19
    assert caplog.text.count("new connections still get") == 1


async def _connect_until(done: asyncio.Event, address: str, files: Files) -> list[grpc.StatusCode]:
    statuses: list[grpc.StatusCode] = []
    while not done.is_set():
        statuses.append(await status_of(address, grpc.ssl_channel_credentials(files.ca)))
        await asyncio.sleep(0.1)  # a connection each 0.1 s, as promised
    return statuses


async def _until_served(serial: int, running: app.Running, files: Files) -> None:
    """Waits until a new connection gets the certificate; at most 2 s."""
    await until_call(lambda: asyncio.to_thread(_serves, running.port, serial), timeout=2)


def _serves(port: int, serial: int) -> bool:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number == serial


async def test_a_swapped_link_is_a_renewal(mongo_uri: str, database_name: str, files: Files, tmp_path: Path) -> None:
    """As Kubernetes does it: a link to a folder is replaced, the files' paths and times stay."""
    secret = tmp_path / "secret"
    secret.mkdir()
    folders = itertools.count()

    def swap() -> int:
        folder = secret / f"..{next(folders)}"
        folder.mkdir()
        pem, key = files.server_pair()
        (folder / "tls.crt").write_bytes(pem)
        (folder / "tls.key").write_bytes(key)
        link = secret / "..new"
        link.symlink_to(folder.name)
        link.replace(secret / "..data")
        return x509.load_pem_x509_certificate(pem).serial_number

    first = swap()
    chosen = {"tls_certificate": secret / "..data/tls.crt", "tls_key": secret / "..data/tls.key"}
    async with serving(mongo_uri, database_name, **chosen) as running:
        await _until_served(first, running, files)
        await _until_served(swap(), running, files)


async def test_a_new_client_ca_counts_for_new_connections(mongo_uri: str, database_name: str, files: Files) -> None:
    new = Authority.new()
    pair = certificate(new, "ada")
    async with serving(mongo_uri, database_name, **files.settings(needs_certificate=True)) as running:
        assert await status_of(running.address, files.of(pair)) is grpc.StatusCode.UNAVAILABLE
        server_ca = files.ca
        (files.folder / "ca.pem").write_bytes(new.certificate.public_bytes(Encoding.PEM))
        credentials = grpc.ssl_channel_credentials(server_ca, pair[1], pair[0])

        async def is_accepted() -> bool:
            return await status_of(running.address, credentials) is grpc.StatusCode.OK

        await until_call(is_accepted, timeout=2)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("server.pem", b"bad", "server.pem has no certificate in PEM"),
        ("server-key.pem", b"bad", "server-key.pem has no private key in PEM"),
        ("server-key.pem", None, "server-key.pem cannot be read: No such file or directory"),
        ("ca.pem", b"", "ca.pem has no certificate in PEM"),
        ("server.pem", b"x" * (2 << 20), "server.pem has more than 1048576 bytes"),
    ],
)
async def test_a_server_without_a_good_certificate_does_not_start(
    mongo_uri: str, database_name: str, files: Files, name: str, content: bytes | None, reason: str
) -> None:
    if content is None:
        (files.folder / name).unlink()
    else:
        (files.folder / name).write_bytes(content)
    with pytest.raises(SettingError, match=reason):
        async with serving(mongo_uri, database_name, **files.settings(needs_certificate=True)):
            pass


async def test_a_certificate_that_has_ended_or_is_another_keys_stops_the_start(
    mongo_uri: str, database_name: str, files: Files
) -> None:
    for pair, reason in (
        (files.server_pair(timedelta(seconds=-1)), "server.pem ended at"),
        (files.server_pair(), "server-key.pem is not the key of the certificate"),
    ):
        files.write(pair)
        if "key" in reason:
            files.write((pair[0], files.server_pair()[1]))
        with pytest.raises(SettingError, match=reason):
            async with serving(mongo_uri, database_name, **files.settings()):
                pass


async def test_the_log_warns_fourteen_days_before_the_end(
    mongo_uri: str, database_name: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    for days, warns in ((13, True), (15, False)):
        caplog.clear()
        for name, content in zip(
            ("server.pem", "server-key.pem"), files.server_pair(timedelta(days=days)), strict=True
        ):
            (files.folder / name).write_bytes(content)
        async with serving(mongo_uri, database_name, **files.settings()):
            pass
        assert ("in 13.0 days; then no caller can connect: renew it" in caplog.text) is warns


async def test_a_unix_socket(mongo_uri: str, database_name: str, tmp_path: Path) -> None:
    path = tmp_path / "turnkeeper.sock"
    async with serving(mongo_uri, database_name, host=f"unix:{path}") as running:
        assert running.address == f"unix:{path}"
        async with harness.connect(running.address) as stubs:
            session = await harness.create_test_session(stubs, agent="assistant")
            assert harness.answer_of(await harness.send_message_to_session(stubs, session, "Well?")) == "Yes."
        with pytest.raises(PortTaken, match="another program listens there"):
            async with serving(mongo_uri, database_name, host=f"unix:{path}"):
                pass
        async with harness.connect(running.address) as stubs:
            await harness.create_test_session(stubs, agent="assistant")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving(mongo_uri, database_name, host=f"unix:{path}"):
        pass


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/s", "its folder does not exist. Make it, or choose another --host."),
        ("file/s", "its folder is a file. Choose another --host."),
        ("file", "or it is a file."),
    ],
)
async def test_a_path_that_cannot_be_a_socket(
    mongo_uri: str, database_name: str, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PortTaken) as taken:
        async with serving(mongo_uri, database_name, host=f"unix:{tmp_path}/{name}"):
            pass
    assert reason in str(taken.value)
    assert str(taken.value).startswith(f"unix:{tmp_path}/{name} cannot be listened on: ")
