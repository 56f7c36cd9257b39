"""The Prometheus endpoint: one small HTTP server over one registry."""

import logging
import socket
import sys
from socketserver import TCPServer
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

logger = logging.getLogger(__name__)


class PrometheusEndpoint:
    """Serves `/metrics` from a thread of its own until `close`. `address` is host:port as it was taken."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        """Listens at once; port 0 takes a free one. Raises OSError if the address is taken or not this machine's."""
        family = _Server6 if ":" in host else _Server
        self._server = family((host, port), _QuietHandler)
        self._server.set_app(make_wsgi_app(registry))
        taken = self._server.server_port
        self.address = f"[{host}]:{taken}" if ":" in host else f"{host}:{taken}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="prometheus", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving and waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingWSGIServer):
    allow_reuse_port = False  # a second process must fail, not share the port
    daemon_threads = True

    def server_bind(self) -> None:
        """Binds without the name look-up of http.server, which may wait for DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Logs at DEBUG that a client left or stayed silent; the base class writes a stack to standard error."""
        logger.debug("a scrape was not answered (%s)", type(sys.exception()).__name__)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds a silent client may hold a thread

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Writes nothing: a scrape is not worth a line."""
