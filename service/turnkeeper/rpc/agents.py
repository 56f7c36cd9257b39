"""AgentService: the agents of the agents file, and the older versions that sessions pinned."""

from dataclasses import replace
from functools import partial

from turnkeeper.engine.rules.policy_trial import evaluated
from turnkeeper.errors import AgentNotFound
from turnkeeper.event_loop import off_loop
from turnkeeper.pb.v1 import agent_pb2, agent_pb2_grpc
from turnkeeper.policy.policies import Policies
from turnkeeper.rpc import codec
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import caller_of
from turnkeeper.rpc.page_tokens import PageTokens
from turnkeeper.rpc.views import agent_view, tool_view
from turnkeeper.store.contract import SessionStore
from turnkeeper.tools.toolbox import Toolbox


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """The RPCs about agents."""

    def __init__(self, policies: Policies, store: SessionStore, *, toolbox: Toolbox, page_tokens: PageTokens) -> None:
        self._policies = policies
        self._agents = policies.configured
        self._store = store
        self._toolbox = toolbox
        self._page_tokens = page_tokens

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, context: Context) -> agent_pb2.GetAgentResponse:
        agent = self._agents.get(request.name)
        if request.version and (agent is None or agent.version != request.version):
            agent = await self._store.agent(caller_of(context).tenant, request.name, request.version)
        if agent is None:
            if request.version and request.name in self._agents:
                raise AgentNotFound(
                    f"Agent {request.name} has no version {request.version}; leave it empty for the present one.",
                    metadata={"agent": request.name},
                )
            raise AgentNotFound(metadata={"agent": request.name})
        agent = replace(agent, policy=self._policies.rules_of(agent))
        tools = [tool_view(spec, agent.policy) for spec in self._toolbox.offered(agent)]
        return agent_pb2.GetAgentResponse(agent=agent_view(agent), tools=tools)

    async def EvaluatePolicy(
        self, request: agent_pb2.EvaluatePolicyRequest, context: Context
    ) -> agent_pb2.EvaluatePolicyResponse:
        caller = caller_of(context)
        agent = self._agents.get(request.agent)
        if agent is None:
            raise AgentNotFound(metadata={"agent": request.agent})
        evaluate = partial(
            evaluated,
            self._policies,
            self._toolbox,
            agent,
            tool=request.tool,
            arguments_json=request.arguments_json,
            tenant=caller.tenant,
            principal=request.principal or caller.principal,
            labels=dict(request.labels),
            untrusted=request.untrusted,
        )
        ruling = await off_loop(evaluate)
        return codec.fill(agent_pb2.EvaluatePolicyResponse(), ruling)

    async def ListAgents(self, request: agent_pb2.ListAgentsRequest, context: Context) -> agent_pb2.ListAgentsResponse:
        caller = caller_of(context)
        start = self._page_tokens.after(request, caller=caller)
        after = str(start[0]) if start else ""
        size = self._page_tokens.size(request.page_size)
        agents = [agent for name, agent in sorted(self._agents.items()) if name > after][: size + 1]
        views, token = await self._page_tokens.page(
            agents,
            request,
            caller=caller,
            size=size,
            key_of=lambda agent: (agent.name,),
            view=agent_view,
        )
        return agent_pb2.ListAgentsResponse(agents=views, next_page_token=token, total_size=len(self._agents))
