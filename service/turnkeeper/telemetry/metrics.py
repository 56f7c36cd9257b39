"""What is counted, one method per thing worth counting. docs/reference/telemetry.md lists every instrument.

Seconds are floats. A label's value is an enum's name or a name that an operator configured, never an id, a person or
an error's text; `labels.label` is the last guard.
"""

from collections.abc import Iterator

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, NoOpMeterProvider, Observation

from turnkeeper.codes import Code
from turnkeeper.telemetry import bucket_bounds as bounds
from turnkeeper.telemetry.approval_metrics import ApprovalMetrics
from turnkeeper.telemetry.labels import OTHER, SERVER_ADDRESS, SERVER_FAULTS, Labelled, LabelSet, PendingAmounts

SCOPE = "turnkeeper"
"""The instrumentation scope of every instrument and span."""

_MODEL_LABELS = ("gen_ai.request.model", SERVER_ADDRESS, "server.port")


class Metrics(ApprovalMetrics):
    """Every method is safe to call whether or not anything is exported.

    The methods of connections, streams and turns belong to the event loop's thread, the others to any thread.
    """

    def __init__(self, meters: MeterProvider, *, provider: str = "openai") -> None:
        """`provider` is `gen_ai.provider.name`: the wire format of the model's server."""
        self.counting = not isinstance(meters, NoOpMeterProvider)
        """False where metrics go nowhere: then nothing that is done for metrics alone needs to be done."""
        self._meter: Meter = meters.get_meter(SCOPE)
        self._batch = PendingAmounts(counting=self.counting)
        self._connections = self._streams = self._turns = 0
        self._conventional({"gen_ai.provider.name": provider})
        self._work()
        self._levels()
        self._surprises()

    def rpc_finished(self, service: str, *, method: str, code: str, seconds: float) -> None:
        """Records a served call. `code` is the gRPC status name, `OK` included."""
        self._rpc_duration(seconds, f"{service}/{method}", code, code if code in SERVER_FAULTS else None)

    def model_finished(
        self,
        model: str,
        *,
        server: tuple[str, int],
        seconds: float,
        input_tokens: int = 0,
        output_tokens: int = 0,
        error_type: str = "",
    ) -> None:
        """Records a call to a model. `server` is the host and port of the model's server.

        `error_type` is a code's name, empty on success. Tokens of 0 are not recorded: the server did not count them.
        """
        if input_tokens:
            self._token_usage(input_tokens, model, *server, "input")
        if output_tokens:
            self._token_usage(output_tokens, model, *server, "output")
        self._model_duration(seconds, model, *server, error_type or None)

    def first_chunk(self, model: str, *, server: tuple[str, int], seconds: float) -> None:
        """Records the time from the request to the model's first chunk."""
        self._first_chunk(seconds, model, *server)

    def agent_finished(self, agent: str, *, model: str, seconds: float, error_type: str = "") -> None:
        """Records one attempt at a turn, however it ended. `error_type` is empty where it did not fail."""
        self._agent_duration(seconds, agent, model, error_type or None)

    def database_finished(self, operation: str, *, database: str, seconds: float, error_type: str = "") -> None:
        """Records one call of the store, all its commands and retries included. `error_type` is empty on success."""
        self._database_duration(seconds, operation, database, error_type or None)

    def message(self, role: str) -> None:
        """Counts a message that became durable."""
        self._messages(1, role)

    def tool_finished(self, source: str, *, tool_class: str, outcome: str, seconds: float, tool: str = OTHER) -> None:
        """Records the end of a tool call. `source` is the configured name of where the tool comes from.

        `tool` is the name of one of the operator's tools; a name that a client chose is never a label.
        """
        self._tool_calls(1, source, tool_class, outcome)
        self._tool_duration(seconds, source)
        self._execute_tool(seconds, tool, None if outcome == "OK" else outcome)

    def tool_threads(self, count: int, tool: str) -> None:
        """Records that the calls of a plain tool hold `count` threads more; fewer if it is negative."""
        self._tool_threads(count, tool)

    def tool_source(self, source: str, *, count: int, size: int) -> None:
        """Records how many tools a source offers (`size`), and if its calls can reach it now: `count` is 1 or 0."""
        self._source_up(count, source)
        self._source_tools(size, source)

    def reloaded(self, file: str, outcome: str) -> None:
        """Counts a change of a watched file: LOADED, or REFUSED if it could not be used. `file` is what it holds."""
        self._reloads(1, file, outcome)

    def error(self, code: Code) -> None:
        """Counts an error that reached a caller, or ended a turn."""
        self._errors(1, code.name)

    def response_finished(self, agent: str, *, model: str, seconds: float) -> None:
        """Records the time from a message's acceptance to the whole answer."""
        self._response_duration(seconds, agent, model)

    def turn_finished(self, outcome: str, *, agent: str, seconds: float) -> None:
        """Records the time from a turn's acceptance to its end, waiting included."""
        self._turn_duration(seconds, outcome, agent)

    def tokens(self, kind: str, *, agent: str, count: int) -> None:
        """Records the tokens of one turn. `kind`: input or output."""
        self._tokens(count, kind, agent)

    def delivery_lag(self, seconds: float) -> None:
        """Records the time from an event's commit to its being handed to a stream that follows live."""
        self._delivery_lag(seconds)

    def loop_lag(self, seconds: float) -> None:
        """Records how much later than planned the event loop came to a measurement."""
        self._loop_lag(seconds)

    def takeover(self, reason: str, *, delay: float) -> None:
        """Counts a turn that this replica took over, `delay` seconds after any replica could have claimed it."""
        self._takeovers(1, reason)
        self._takeover_delay(delay)

    def fenced_write(self, reason: str) -> None:
        """Counts a write that was refused because its lease is not the newest."""
        self._fenced_writes(1, reason)

    def append_retry(self, reason: str) -> None:
        """Counts an append that was tried again."""
        self._append_retries(1, reason)

    def unknown_outcome(self, reason: str) -> None:
        """Counts a tool call that began and whose end is unknown."""
        self._unknown_outcomes(1, reason)

    def call_detached(self, reason: str) -> None:
        """Counts a cancelled call of a model or a tool that did not end in time, and is left behind."""
        self._detached_calls(1, reason)

    def replay(self, reason: str) -> None:
        """Counts a stream's read of stored events, or a request that was answered from its record."""
        self._replays(1, reason)

    def slow_consumer(self, reason: str) -> None:
        """Counts a stream that ended because its reader did not keep up."""
        self._slow_consumers(1, reason)

    def refusal(self, kind: str, *, reason: str) -> None:
        """Counts a call that was refused because the replica has enough work. `reason` names the limit."""
        self._refusals(1, kind, reason)

    def limited(self, limit: str, *, scope: str, outcome: str) -> None:
        """Counts a call beyond a limit of its principal or tenant."""
        self._limited(1, limit, scope, outcome)

    def commit_finished(self, seconds: float) -> None:
        """Records the time of one commit, its wait in the queue in front of the database included."""
        self._commit_duration(seconds)

    def set_call_limit(self, count: int) -> None:
        """Sets the limit of calls at work, which adapts to the database and the event loop."""
        self._call_limit.set(count)

    def set_memory_budget(self, size: int) -> None:
        """Sets the bytes of memory that the process may use."""
        self._memory_budget.set(size)

    def set_memory_used(self, part: str, *, size: int) -> None:
        """Sets the bytes of memory that a part of the process holds."""
        self._memory_used(size, part)

    def notifications_lost(self, reason: str) -> None:
        """Counts a change stream that broke, or could not be opened; until it is open again, the replica polls."""
        self._change_streams_lost(1, reason)

    def document_unreadable(self, collection: str, *, schema: str) -> None:
        """Counts each time that a stored document was met which only a newer version can read."""
        self._documents_unreadable(1, collection, schema)

    def set_active_sessions(self, count: int) -> None:
        """Sets the number of active sessions in the database: every replica reports the same."""
        self._sessions.set(count)

    def set_pending_approvals(self, count: int) -> None:
        """Sets the number of pending approvals in the database: every replica reports the same."""
        self._pending_approvals.set(count)

    def set_waiting_turns(self, count: int, *, seconds: float) -> None:
        """Sets how many turns in the database wait for a worker, and the seconds that the oldest of them has waited."""
        self._waiting_turns.set(count)
        self._longest_wait.set(seconds)

    def connection_opened(self) -> None:
        self._connections += 1

    def connection_closed(self) -> None:
        self._connections -= 1

    def stream_opened(self) -> None:
        self._streams += 1

    def stream_closed(self) -> None:
        self._streams -= 1

    def turn_began(self) -> None:
        """Counts a turn that this process works on from now on: a claim, not an acceptance."""
        self._turns += 1

    def turn_ended(self) -> None:
        """Counts off a turn that this process no longer works on, for any reason."""
        self._turns -= 1

    def _conventional(self, provider: LabelSet) -> None:
        chat = {"gen_ai.operation.name": "chat", **provider}
        self._rpc_duration = self._seconds(
            "rpc.server.call.duration",
            "Duration of a call as the server saw it.",
            "rpc.method",
            "rpc.response.status_code",
            "error.type",
            buckets=bounds.CALL,
            fixed={"rpc.system.name": "grpc"},
        )
        self._model_duration = self._seconds(
            "gen_ai.client.operation.duration",
            "Duration of a call to a model.",
            *_MODEL_LABELS,
            "error.type",
            buckets=bounds.MODEL,
            fixed=chat,
        )
        self._token_usage = self._histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of a call to a model, as its server counted them.",
            *_MODEL_LABELS,
            "gen_ai.token.type",
            buckets=bounds.TOKENS,
            fixed=chat,
        )
        self._first_chunk = self._seconds(
            "gen_ai.client.operation.time_to_first_chunk",
            "From the request to the model's first chunk.",
            *_MODEL_LABELS,
            buckets=bounds.MODEL,
            fixed=chat,
        )
        self._agent_duration = self._seconds(
            "gen_ai.invoke_agent.duration",
            "Duration of one attempt at a turn.",
            "gen_ai.agent.name",
            "gen_ai.request.model",
            "error.type",
            buckets=bounds.TURN,
            fixed={"gen_ai.operation.name": "invoke_agent", **provider},
        )
        self._execute_tool = self._seconds(
            "gen_ai.execute_tool.duration",
            "Duration of a tool call, by the tool's name.",
            "gen_ai.tool.name",
            "error.type",
            buckets=bounds.WORK,
            fixed={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.type": "function"},
        )
        self._database_duration = self._seconds(
            "db.client.operation.duration",
            "Duration of a call of the store to the database.",
            "db.operation.name",
            "db.namespace",
            "error.type",
            buckets=bounds.DATABASE,
            fixed={"db.system.name": "mongodb"},
        )

    def _work(self) -> None:
        self._messages = self._counter("messages", "{message}", "Messages that became durable.", "role")
        self._tool_calls = self._counter("tool_calls", "{call}", "Tool calls that ended.", "source", "class", "outcome")
        self._errors = self._counter("errors", "{error}", "Errors that reached a caller or ended a turn.", "code")
        self._approvals = self._counter("approvals", "{approval}", "Approvals that ended.", "decision")
        self._tokens = self._histogram(
            "turnkeeper.tokens", "{token}", "Tokens of a turn.", "kind", "agent", buckets=bounds.TOKENS
        )
        self._response_duration = self._seconds(
            "turnkeeper.response.duration",
            "From a message's acceptance to the whole answer.",
            "agent",
            "model",
            buckets=bounds.TURN,
        )
        self._tool_duration = self._seconds(
            "turnkeeper.tool.duration", "Duration of a tool call.", "source", buckets=bounds.WORK
        )
        self._turn_duration = self._seconds(
            "turnkeeper.turn.duration", "From a turn's acceptance to its end.", "outcome", "agent", buckets=bounds.TURN
        )
        self._commit_duration = self._seconds(
            "turnkeeper.commit.duration",
            "Duration of a commit, its wait in the queue in front of the database included.",
            buckets=bounds.DATABASE,
        )
        self._delivery_lag = self._seconds(
            "turnkeeper.event.delivery_lag",
            "From an event's commit to its delivery to a live stream.",
            buckets=bounds.LAG,
        )
        self._loop_lag = self._seconds(
            "turnkeeper.event_loop.lag", "How late the event loop comes to what is due.", buckets=bounds.LAG
        )
        self._takeover_delay = self._seconds(
            "turnkeeper.takeover.delay",
            "How long a lost owner's turn could be claimed before a worker took it over.",
            buckets=bounds.TAKEOVER,
        )
        self._decision_time = self._seconds(
            "turnkeeper.approval.decision_time", "From an approval's request to its decision.", buckets=bounds.PERSON
        )

    def _levels(self) -> None:
        gauge = self._meter.create_gauge
        self._sessions = gauge("turnkeeper.sessions.active", "{session}", "Active sessions in the database.")
        self._pending_approvals = gauge("turnkeeper.approvals.pending", "{approval}", "Pending approvals.")
        self._waiting_turns = gauge("turnkeeper.turns.waiting", "{turn}", "Turns that wait for a worker.")
        self._longest_wait = gauge("turnkeeper.turns.longest_wait", "s", "How long the oldest waiting turn has waited.")
        self._call_limit = gauge("turnkeeper.calls.limit", "{call}", "Calls at work beyond which messages are refused.")
        self._memory_budget = gauge("turnkeeper.memory.budget", "By", "Memory that the process may use.")
        used = gauge("turnkeeper.memory.used", "By", "Memory that a part of the process holds.")
        self._memory_used = Labelled(used.set, "part", fixed={}, batch=self._batch)

        def connections(_: CallbackOptions) -> Iterator[Observation]:
            self._batch.flush()  # the SDK calls this before it reads the other instruments
            yield Observation(self._connections)

        def streams(_: CallbackOptions) -> Iterator[Observation]:
            yield Observation(self._streams)

        def turns(_: CallbackOptions) -> Iterator[Observation]:
            yield Observation(self._turns)

        level = self._meter.create_observable_up_down_counter
        level("turnkeeper.connections.active", [connections], "{connection}", "Open connections of this process.")
        level("turnkeeper.streams.active", [streams], "{stream}", "Open streams of this process.")
        level("turnkeeper.turns.active", [turns], "{turn}", "Turns this process works on.")
        threads = self._meter.create_up_down_counter(
            "turnkeeper.tool_threads.active", "{thread}", "Threads that the calls of a plain tool hold."
        )
        self._tool_threads = Labelled(threads.add, "tool", fixed={}, batch=self._batch)
        up = gauge("turnkeeper.tool_source.up", "1", "Whether the calls of a source's tools can reach it: 1 or 0.")
        self._source_up = Labelled(up.set, "source", fixed={}, batch=self._batch)
        offered = gauge("turnkeeper.tool_source.tools", "{tool}", "Tools that a source offers.")
        self._source_tools = Labelled(offered.set, "source", fixed={}, batch=self._batch)

    def _surprises(self) -> None:
        def counter(name: str, unit: str, description: str) -> Labelled:
            return self._counter(name, unit, description, "reason")

        self._takeovers = counter("takeovers", "{turn}", "Turns taken over from another worker.")
        self._fenced_writes = counter("fenced_writes", "{write}", "Writes refused because the lease is not the newest.")
        self._append_retries = counter("append_retries", "{retry}", "Appends tried again.")
        self._unknown_outcomes = counter("unknown_outcomes", "{call}", "Tool calls whose end is unknown.")
        self._detached_calls = counter("detached_calls", "{call}", "Cancelled calls that did not end in time.")
        self._replays = counter("replays", "{replay}", "Reads of stored events, and answers from a request's record.")
        self._change_streams_lost = counter("hints_lost", "{stream}", "Change streams that broke or did not open.")
        self._inbox_resets = counter("inbox_resets", "{stream}", "Inboxes that began with a snapshot again.")
        self._documents_unreadable = self._counter(
            "documents.unreadable", "{document}", "Stored documents that need a newer version.", "collection", "schema"
        )
        self._refusals = self._counter("refusals", "{call}", "Calls refused for want of room.", "kind", "reason")
        self._reloads = self._counter("reloads", "{change}", "Changes of watched files.", "file", "outcome")
        self._limited = self._counter("limited", "{call}", "Calls beyond a limit.", "limit", "scope", "outcome")
        self._slow_consumers = counter("slow_consumers", "{stream}", "Streams ended because the reader fell behind.")

    def _counter(self, name: str, unit: str, description: str, *labels: str) -> Labelled:
        counter = self._meter.create_counter(f"turnkeeper.{name}", unit, description)
        return Labelled(counter.add, *labels, fixed={}, batch=self._batch)

    def _seconds(
        self, name: str, description: str, *labels: str, buckets: tuple[float, ...], fixed: LabelSet | None = None
    ) -> Labelled:
        return self._histogram(name, "s", description, *labels, buckets=buckets, fixed=fixed)

    def _histogram(
        self,
        name: str,
        unit: str,
        description: str,
        *labels: str,
        buckets: tuple[float, ...],
        fixed: LabelSet | None = None,
    ) -> Labelled:
        """`buckets` are upper bounds, each inside its bucket."""
        histogram = self._meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)
        return Labelled(histogram.record, *labels, fixed=fixed or {}, batch=self._batch)
