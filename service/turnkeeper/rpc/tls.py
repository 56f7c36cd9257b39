"""TLS of the server: gRPC asks for the certificate at each new connection, so that a renewed one needs no restart."""

from typing import Any

import grpc

from turnkeeper.identity.server_certificate import Served, ServerCertificate


def credentials_of(certificate: ServerCertificate) -> grpc.ServerCredentials:
    """Returns the credentials of the port. Callers need a certificate if the settings have a CA for them."""
    given = certificate.served

    def newest() -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificate if it has changed. Called by threads of gRPC, one at a time."""
        nonlocal given
        if certificate.served is given:
            return None
        given = certificate.served
        return _configuration(given)

    fetch: Any = newest  # its type does not know that None stands for no change
    needs_certificate = given.content.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, needs_certificate)


def _configuration(served: Served) -> grpc.ServerCertificateConfiguration:
    content = served.content
    return grpc.ssl_server_certificate_configuration([(content.key, content.certificate)], content.client_ca)
