"""OperatorService: what runs in a tenant, its cancellation, freezes, and the replicas."""

from datetime import UTC, datetime, timedelta

from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.operations import MOST_CANCELLED, Operations
from turnkeeper.identity.caller import Caller
from turnkeeper.pb.v1 import chat_pb2, operator_pb2, operator_pb2_grpc
from turnkeeper.rpc import codec, validation
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.origins import origin_of
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.store.operations import ActiveTurn, OperationStore, TurnFilter


class OperatorService(operator_pb2_grpc.OperatorServiceServicer):
    """The RPCs of operators."""

    def __init__(self, operations: Operations, store: OperationStore, *, page_tokens: PageTokens) -> None:
        self._operations = operations
        self._store = store
        self._page_tokens = page_tokens

    async def ListActiveTurns(
        self, request: operator_pb2.ListActiveTurnsRequest, context: Context
    ) -> operator_pb2.ListActiveTurnsResponse:
        caller = _acting(request.tenant, context)
        now = datetime.now(UTC)
        start = self._page_tokens.after(request, caller=caller)
        size = self._page_tokens.size(request.page_size)
        turns = await self._store.active_turns(
            caller.tenant,
            _filter_of(request.filter, now=now),
            limit=size + 1,
            after=(str(start[0]), str(start[1])) if start else None,
        )
        views, token = await self._page_tokens.page(
            turns,
            request,
            caller=caller,
            size=size,
            key_of=lambda active: (active.turn.session_id, active.turn.id),
            view=lambda active: _turn_view(active, now=now),
        )
        return operator_pb2.ListActiveTurnsResponse(turns=views, next_page_token=token)

    async def CancelTurns(
        self, request: operator_pb2.CancelTurnsRequest, context: Context
    ) -> operator_pb2.CancelTurnsResponse:
        tenant = _acting(request.tenant, context).tenant
        if request.expected_count > MOST_CANCELLED:
            validation.refuse({"expected_count": f"must be at most {MOST_CANCELLED}: narrow the filter"})
        done = await self._operations.cancel(
            tenant,
            _filter_of(request.filter, now=datetime.now(UTC)),
            expected=request.expected_count,
            origin=origin_of(context),
        )
        return operator_pb2.CancelTurnsResponse(
            cancelled=done.cancelled, requested=done.requested, ended=done.ended, failed=done.failed
        )

    async def FreezeAdmission(
        self, request: operator_pb2.FreezeAdmissionRequest, context: Context
    ) -> operator_pb2.FreezeAdmissionResponse:
        tenant = _acting(request.tenant, context).tenant
        freeze = await self._operations.freeze(tenant, request.agent, reason=request.reason, origin=origin_of(context))
        return operator_pb2.FreezeAdmissionResponse(freeze=_freeze_view(freeze))

    async def UnfreezeAdmission(
        self, request: operator_pb2.UnfreezeAdmissionRequest, context: Context
    ) -> operator_pb2.UnfreezeAdmissionResponse:
        tenant = _acting(request.tenant, context).tenant
        removed = await self._operations.unfreeze(tenant, request.agent, origin=origin_of(context))
        return operator_pb2.UnfreezeAdmissionResponse(unfrozen=removed)

    async def ListFreezes(
        self, request: operator_pb2.ListFreezesRequest, context: Context
    ) -> operator_pb2.ListFreezesResponse:
        freezes = await self._operations.frozen(_acting(request.tenant, context).tenant)
        return operator_pb2.ListFreezesResponse(freezes=map(_freeze_view, freezes))

    async def DenyTool(self, request: operator_pb2.DenyToolRequest, context: Context) -> operator_pb2.DenyToolResponse:
        denial = await self._operations.deny_tool(
            _acting(request.tenant, context).tenant,
            request.pattern,
            until=validation.optional_time(request, "until"),
            reason=request.reason,
            origin=origin_of(context),
        )
        return operator_pb2.DenyToolResponse(denial=codec.fill(operator_pb2.ToolDenial(), denial))

    async def AllowTool(
        self, request: operator_pb2.AllowToolRequest, context: Context
    ) -> operator_pb2.AllowToolResponse:
        tenant = _acting(request.tenant, context).tenant
        allowed = await self._operations.allow_tool(tenant, request.pattern, origin=origin_of(context))
        return operator_pb2.AllowToolResponse(allowed=allowed)

    async def ListDeniedTools(
        self, request: operator_pb2.ListDeniedToolsRequest, context: Context
    ) -> operator_pb2.ListDeniedToolsResponse:
        denials = await self._operations.denied_tools(_acting(request.tenant, context).tenant)
        views = [codec.fill(operator_pb2.ToolDenial(), denial) for denial in denials]
        return operator_pb2.ListDeniedToolsResponse(denials=views)

    async def ListReplicas(
        self, request: operator_pb2.ListReplicasRequest, context: Context
    ) -> operator_pb2.ListReplicasResponse:
        replicas = [
            operator_pb2.Replica(
                name=replica.name,
                heartbeat_time=codec.timestamp(replica.heartbeat),
                alive=replica.alive,
                turns=replica.turns,
            )
            for replica in await self._store.replicas()
        ]
        return operator_pb2.ListReplicasResponse(replicas=replicas)


def _acting(tenant: str, context: Context) -> Caller:
    """Returns the caller in the tenant that the request names. Raises PermissionDenied if that may not be."""
    return caller_of(context).in_tenant(tenant)


def _filter_of(filter_: operator_pb2.TurnFilter, *, now: datetime) -> TurnFilter:
    names = [chat_pb2.TurnState.Name(state) for state in filter_.states if state]
    states = tuple(TurnState(name.removeprefix("TURN_STATE_")) for name in names)
    if ended := [state.value for state in states if state.ended]:
        validation.refuse({"filter.states": f"must be states of turns that have not ended, not {', '.join(ended)}"})
    age = codec.seconds(filter_.min_age) if filter_.HasField("min_age") else 0.0
    return TurnFilter(
        agent=filter_.agent,
        tool=filter_.tool,
        states=states,
        created_before=now - timedelta(seconds=age) if age else None,
        session_id=filter_.session_id,
        principal=filter_.principal,
    )


def _turn_view(active: ActiveTurn, *, now: datetime) -> operator_pb2.ActiveTurn:
    turn = active.turn
    view = operator_pb2.ActiveTurn(
        session_id=turn.session_id,
        turn_id=turn.id,
        agent=turn.agent,
        principal=turn.principal,
        state=chat_pb2.TurnState.Value(f"TURN_STATE_{turn.state.value}"),
        tools=active.tools,
        create_time=codec.timestamp(turn.create_time),
        replica=active.owner,
        cancelling=active.cancelling,
    )
    view.age.FromTimedelta(max(timedelta(), now - turn.create_time))
    codec.fill(view.usage, turn.usage)
    return view


def _freeze_view(freeze: Freeze) -> operator_pb2.Freeze:
    return operator_pb2.Freeze(
        tenant=freeze.tenant,
        agent=freeze.agent,
        principal=freeze.principal,
        reason=freeze.reason,
        create_time=codec.timestamp(freeze.create_time),
    )
