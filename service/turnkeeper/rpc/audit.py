"""AuditService: the audit trail of a tenant, or of the service itself."""

from collections.abc import AsyncIterator

from turnkeeper.audit.export import NoSuchSeal, lines_of_trail
from turnkeeper.errors import PermissionDenied
from turnkeeper.identity.caller import AccessRole, Caller
from turnkeeper.pb.v1 import audit_pb2, audit_pb2_grpc
from turnkeeper.rpc import validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.exports import grouped
from turnkeeper.rpc.identity import caller_of
from turnkeeper.store.audit import AuditTrail

SERVICE = ""
"""Stands for the service itself in place of a tenant."""


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """The RPCs about the audit trail."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    async def ExportAudit(
        self, request: audit_pb2.ExportAuditRequest, context: Context
    ) -> AsyncIterator[audit_pb2.ExportAuditResponse]:
        tenant = _tenant_of(request, caller_of(context))
        try:
            async for lines in grouped(lines_of_trail(self._trail, tenant, after=request.after_seal)):
                yield audit_pb2.ExportAuditResponse(lines=lines).SerializeToString()  # type: ignore[misc]  # bytes pass
        except NoSuchSeal as none:
            validation.refuse({"after_seal": f"is beyond the last seal, {none.last}"})


def _tenant_of(request: audit_pb2.ExportAuditRequest, caller: Caller) -> str:
    """Returns whose trail is requested. Raises PermissionDenied for one that the caller may not read."""
    if not request.service:
        return caller.in_tenant(request.tenant).tenant
    if request.tenant:
        validation.refuse({"tenant": "belongs to an export of a tenant, not of the service"})
    if AccessRole.PLATFORM not in caller.roles:
        raise PermissionDenied("Only the role platform may export the records of the service.")
    return SERVICE
