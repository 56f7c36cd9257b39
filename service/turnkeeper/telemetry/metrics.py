"""What is counted, one method per thing worth counting. docs/reference/telemetry.md lists every instrument.

Seconds are floats. A label's value is an enum's name or a configured name, never an id, a person, a raw tool name or
an error's text; `labels.label` is the last guard.
"""

from opentelemetry.metrics import Counter, Histogram, Meter

from turnkeeper.codes import Code
from turnkeeper.telemetry.labels import SERVER_FAULTS, label

_CALL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
_MODEL = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TURN = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400, 604800)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TAKEOVER = (0.5, 1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 300, 900)
_PERSON = (1, 5, 15, 30, 60, 300, 900, 3600, 14400, 86400, 259200, 604800)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


class Metrics:
    """Every method is safe and cheap to call whether or not anything is exported."""

    def __init__(self, meter: Meter, *, provider: str = "openai") -> None:
        """`provider` is `gen_ai.provider.name`: the wire format of the model's server."""
        self._provider = provider
        self._conventional(meter)
        self._work(meter)
        self._levels(meter)
        self._surprises(meter)

    def rpc_finished(self, service: str, *, method: str, code: str, seconds: float) -> None:
        """`code` is the gRPC status name, `OK` included. An unknown method is the caller's to name `_OTHER`."""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": label(f"{service}/{method}"),
            "rpc.response.status_code": label(code),
        }
        if code in SERVER_FAULTS:
            attributes["error.type"] = code
        self._rpc_duration.record(seconds, attributes)

    def model_finished(
        self, model: str, *, seconds: float, input_tokens: int = 0, output_tokens: int = 0, error_type: str = ""
    ) -> None:
        """One call to a model. `model` is the configured name; `error_type` is a code's name, empty on success."""
        attributes = self._model_attributes(model)
        for kind, count in (("input", input_tokens), ("output", output_tokens)):
            if count:
                self._token_usage.record(count, {**attributes, "gen_ai.token.type": kind})
        if error_type:
            attributes["error.type"] = label(error_type)
        self._model_duration.record(seconds, attributes)

    def first_chunk(self, model: str, *, seconds: float) -> None:
        """From the request to the model's first chunk."""
        self._first_chunk.record(seconds, self._model_attributes(model))

    def message(self, role: str) -> None:
        """A message became durable."""
        self._messages.add(1, {"role": label(role)})

    def tool_finished(self, source: str, *, tool_class: str, outcome: str, seconds: float) -> None:
        """A tool call ended. `source` is the configured name of where the tool comes from."""
        source = label(source)
        self._tool_calls.add(1, {"source": source, "class": label(tool_class), "outcome": label(outcome)})
        self._tool_duration.record(seconds, {"source": source})

    def error(self, code: Code) -> None:
        """An error reached a caller, or ended a turn."""
        self._errors.add(1, {"code": code.name})

    def approval(self, decision: str) -> None:
        """An approval was decided, expired or was withdrawn."""
        self._approvals.add(1, {"decision": label(decision)})

    def decision_time(self, seconds: float) -> None:
        """From an approval's request to its decision."""
        self._decision_time.record(seconds)

    def response_finished(self, agent: str, *, model: str, seconds: float) -> None:
        """From a message's acceptance to the whole answer."""
        self._response_duration.record(seconds, {"agent": label(agent), "model": label(model)})

    def turn_finished(self, outcome: str, *, seconds: float) -> None:
        """From a turn's acceptance to its end, waiting included."""
        self._turn_duration.record(seconds, {"outcome": label(outcome)})

    def tokens(self, kind: str, *, count: int) -> None:
        """Tokens of one turn. `kind`: input or output."""
        self._tokens.record(count, {"kind": label(kind)})

    def delivery_lag(self, seconds: float) -> None:
        """From an event's commit to its being handed to a stream that follows live."""
        self._delivery_lag.record(seconds)

    def takeover(self, reason: str, *, delay: float) -> None:
        """Another worker took a turn over, `delay` seconds after its owner last renewed the lease."""
        self._takeovers.add(1, {"reason": label(reason)})
        self._takeover_delay.record(delay)

    def fenced_write(self, reason: str) -> None:
        """A write was refused because its lease is not the newest."""
        self._fenced_writes.add(1, {"reason": label(reason)})

    def append_retry(self, reason: str) -> None:
        """An append was tried again."""
        self._append_retries.add(1, {"reason": label(reason)})

    def unknown_outcome(self, reason: str) -> None:
        """A tool call began and nobody knows how it ended."""
        self._unknown_outcomes.add(1, {"reason": label(reason)})

    def replay(self, reason: str) -> None:
        """A stream read stored events before live ones, or a request was answered from its record."""
        self._replays.add(1, {"reason": label(reason)})

    def slow_consumer(self, reason: str) -> None:
        """A stream ended because its reader did not keep up."""
        self._slow_consumers.add(1, {"reason": label(reason)})

    def hints_lost(self, reason: str) -> None:
        """The stream of hints broke, or could not be opened; until it is open again, this process polls."""
        self._hints_lost.add(1, {"reason": label(reason)})

    def set_active_sessions(self, count: int) -> None:
        """Counted in the database: every replica reports the same number."""
        self._sessions.set(count)

    def set_pending_approvals(self, count: int) -> None:
        """Counted in the database: every replica reports the same number."""
        self._pending_approvals.set(count)

    def connection_opened(self) -> None:
        self._connections.add(1)

    def connection_closed(self) -> None:
        self._connections.add(-1)

    def stream_opened(self) -> None:
        self._streams.add(1)

    def stream_closed(self) -> None:
        self._streams.add(-1)

    def turn_began(self) -> None:
        """This process began to work on a turn: a claim, not an acceptance."""
        self._turns.add(1)

    def turn_ended(self) -> None:
        """This process works on the turn no more, for whatever reason."""
        self._turns.add(-1)

    def _conventional(self, meter: Meter) -> None:
        self._rpc_duration = meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            description="Duration of a call as the server saw it.",
            explicit_bucket_boundaries_advisory=_CALL,
        )
        self._model_duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Duration of a call to a model.",
            explicit_bucket_boundaries_advisory=_MODEL,
        )
        self._token_usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of a call to a model, as its server counted them.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="From the request to the model's first chunk.",
            explicit_bucket_boundaries_advisory=_MODEL,
        )

    def _work(self, meter: Meter) -> None:
        def seconds(name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=buckets
            )

        self._messages = meter.create_counter(
            "turnkeeper.messages", unit="{message}", description="Messages that became durable."
        )
        self._tool_calls = meter.create_counter(
            "turnkeeper.tool_calls", unit="{call}", description="Tool calls that ended."
        )
        self._errors = meter.create_counter(
            "turnkeeper.errors", unit="{error}", description="Errors that reached a caller or ended a turn."
        )
        self._approvals = meter.create_counter(
            "turnkeeper.approvals", unit="{approval}", description="Approvals that ended."
        )
        self._tokens = meter.create_histogram(
            "turnkeeper.tokens",
            unit="{token}",
            description="Tokens of a turn.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._response_duration = seconds(
            "turnkeeper.response.duration", "From a message's acceptance to the whole answer.", _TURN
        )
        self._tool_duration = seconds("turnkeeper.tool.duration", "Duration of a tool call.", _WORK)
        self._turn_duration = seconds("turnkeeper.turn.duration", "From a turn's acceptance to its end.", _TURN)
        self._delivery_lag = seconds(
            "turnkeeper.event.delivery_lag", "From an event's commit to its delivery to a live stream.", _LAG
        )
        self._takeover_delay = seconds(
            "turnkeeper.takeover.delay", "From an owner's last renewal to the take-over of its turn.", _TAKEOVER
        )
        self._decision_time = seconds(
            "turnkeeper.approval.decision_time", "From an approval's request to its decision.", _PERSON
        )

    def _levels(self, meter: Meter) -> None:
        self._sessions = meter.create_gauge(
            "turnkeeper.sessions.active", unit="{session}", description="Active sessions in the database."
        )
        self._pending_approvals = meter.create_gauge(
            "turnkeeper.approvals.pending", unit="{approval}", description="Pending approvals in the database."
        )
        self._connections = meter.create_up_down_counter(
            "turnkeeper.connections.active", unit="{connection}", description="Open connections of this process."
        )
        self._streams = meter.create_up_down_counter(
            "turnkeeper.streams.active", unit="{stream}", description="Open streams of this process."
        )
        self._turns = meter.create_up_down_counter(
            "turnkeeper.turns.active", unit="{turn}", description="Turns this process works on."
        )
        for level in (self._connections, self._streams, self._turns):
            level.add(0)  # so that a scrape before the first one says 0, not nothing

    def _surprises(self, meter: Meter) -> None:
        def counter(name: str, unit: str, description: str) -> Counter:
            return meter.create_counter(f"turnkeeper.{name}", unit=unit, description=description)

        self._takeovers = counter("takeovers", "{turn}", "Turns taken over from another worker.")
        self._fenced_writes = counter("fenced_writes", "{write}", "Writes refused because the lease is not the newest.")
        self._append_retries = counter("append_retries", "{retry}", "Appends tried again.")
        self._unknown_outcomes = counter("unknown_outcomes", "{call}", "Tool calls nobody knows the end of.")
        self._replays = counter("replays", "{replay}", "Reads of stored events, and answers from a request's record.")
        self._hints_lost = counter("hints_lost", "{stream}", "Streams of hints that broke or could not be opened.")
        self._slow_consumers = counter("slow_consumers", "{stream}", "Streams ended because the reader fell behind.")

    def _model_attributes(self, model: str) -> dict[str, str]:
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": label(model),
        }
