"""Renews the certificates of both sides while calls go on: Envoy's, which it reads by SDS, and the replicas'."""

import asyncio
import ssl
import time
from typing import Final

from tests.mesh.certificates import CA, CERTIFICATE, KEY, serial_of
from tests.mesh.findings import Findings
from tests.mesh.stage import CALLERS_TLS, HOST, PROXY_ID, REPLICAS_TLS, Stage, renew

WITHIN: Final = 15.0
"""Seconds until new connections must see the new certificates."""
_OFTEN: Final = 0.1


async def rotate(stage: Stage, findings: Findings) -> None:
    """Renews all certificates, waits until new connections see them, and records what must hold."""
    before = stage.envoy.started
    stage.certificates.issue(CALLERS_TLS, hosts=[HOST, "localhost"])
    stage.certificates.issue(REPLICAS_TLS, spiffe_id=PROXY_ID)
    for replica in stage.replicas:
        renew(stage.certificates, replica.name)
    began = time.monotonic()
    try:
        async with asyncio.timeout(WITHIN):
            while missing := await _missing(stage):  # noqa: ASYNC110 - none is sent
                await asyncio.sleep(_OFTEN)
    except TimeoutError:
        missing = await _missing(stage)
    took = time.monotonic() - began
    after = stage.envoy.started
    findings.figures["rotation"] = {"seconds": round(took, 1), "envoy_before": before, "envoy_after": after}
    findings.complaints += [f"the new certificate of {holder} is not in use" for holder in missing]
    findings.expect("new certificates of both sides are in use", f"after {took:.1f} s", held=not missing)
    findings.expect("Envoy is the same process as before", after, held=after == before)


async def _missing(stage: Stage) -> list[str]:
    """Returns the holders whose new certificate is not yet shown to new connections."""
    shown = {CALLERS_TLS: await _shown(stage, stage.envoy.address)}
    shown |= {replica.name: await _shown(stage, replica.address) for replica in stage.replicas}
    missing = [holder for holder, serial in shown.items() if serial != stage.certificates.serial(holder)]
    known = await stage.envoy.serials()
    return [*missing, *([] if stage.certificates.serial(REPLICAS_TLS) in known else [REPLICAS_TLS])]


async def _shown(stage: Stage, address: str) -> int:
    """Returns the serial number of the certificate that a new connection is shown."""
    ours = stage.certificates.folder(REPLICAS_TLS)
    context = ssl.create_default_context(cafile=str(ours / CA))
    context.load_cert_chain(ours / CERTIFICATE, ours / KEY)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    return serial_of(ssl.DER_cert_to_PEM_cert(certificate).encode())
