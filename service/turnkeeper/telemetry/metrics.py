"""What is counted, one method per thing worth counting. docs/reference/telemetry.md lists every instrument.

Seconds are floats. A label's value is an enum's name or a configured name, never an id, a person, a raw tool name or
an error's text; `labels.label` is the last guard.
"""

from turnkeeper.codes import Code
from turnkeeper.telemetry.instruments import Distribution, Instruments, Total
from turnkeeper.telemetry.labels import SERVER_FAULTS, label

_CALL = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.3, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
_MODEL = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_WORK = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TURN = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400, 604800)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TAKEOVER = (0.5, 1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 300, 900)
_PERSON = (1, 5, 15, 30, 60, 300, 900, 3600, 14400, 86400, 259200, 604800)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


_MODEL_LABELS = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")


class Metrics:
    """Every method is safe and cheap to call whether or not anything is exported; on the event loop's thread only."""

    def __init__(self, instruments: Instruments, *, provider: str = "openai") -> None:
        """`provider` is `gen_ai.provider.name`: the wire format of the model's server."""
        self._provider = provider
        self._conventional(instruments)
        self._work(instruments)
        self._levels(instruments)
        self._surprises(instruments)

    def rpc_finished(self, service: str, *, method: str, code: str, seconds: float) -> None:
        """`code` is the gRPC status name, `OK` included. An unknown method is the caller's to name `_OTHER`."""
        fault = code if code in SERVER_FAULTS else ""
        self._rpc_duration.record(seconds, "grpc", label(f"{service}/{method}"), label(code), fault)

    def model_finished(
        self, model: str, *, seconds: float, input_tokens: int = 0, output_tokens: int = 0, error_type: str = ""
    ) -> None:
        """One call to a model. `model` is the configured name; `error_type` is a code's name, empty on success."""
        of = ("chat", self._provider, label(model))
        if input_tokens:
            self._token_usage.record(input_tokens, *of, "input")
        if output_tokens:
            self._token_usage.record(output_tokens, *of, "output")
        self._model_duration.record(seconds, *of, label(error_type) if error_type else "")

    def first_chunk(self, model: str, *, seconds: float) -> None:
        """From the request to the model's first chunk."""
        self._first_chunk.record(seconds, "chat", self._provider, label(model))

    def message(self, role: str) -> None:
        """A message became durable."""
        self._messages.add(label(role))

    def tool_finished(self, source: str, *, tool_class: str, outcome: str, seconds: float) -> None:
        """A tool call ended. `source` is the configured name of where the tool comes from."""
        source = label(source)
        self._tool_calls.add(source, label(tool_class), label(outcome))
        self._tool_duration.record(seconds, source)

    def error(self, code: Code) -> None:
        """An error reached a caller, or ended a turn."""
        self._errors.add(code.name)

    def approval(self, decision: str) -> None:
        """An approval was decided, expired or was withdrawn."""
        self._approvals.add(label(decision))

    def decision_time(self, seconds: float) -> None:
        """From an approval's request to its decision."""
        self._decision_time.record(seconds)

    def response_finished(self, agent: str, *, model: str, seconds: float) -> None:
        """From a message's acceptance to the whole answer."""
        self._response_duration.record(seconds, label(agent), label(model))

    def turn_finished(self, outcome: str, *, seconds: float) -> None:
        """From a turn's acceptance to its end, waiting included."""
        self._turn_duration.record(seconds, label(outcome))

    def tokens(self, kind: str, *, count: int) -> None:
        """Tokens of one turn. `kind`: input or output."""
        self._tokens.record(count, label(kind))

    def delivery_lag(self, seconds: float) -> None:
        """From an event's commit to its being handed to a stream that follows live."""
        self._delivery_lag.record(seconds)

    def takeover(self, reason: str, *, delay: float) -> None:
        """Another worker took a turn over, `delay` seconds after its owner last renewed the lease."""
        self._takeovers.add(label(reason))
        self._takeover_delay.record(delay)

    def fenced_write(self, reason: str) -> None:
        """A write was refused because its lease is not the newest."""
        self._fenced_writes.add(label(reason))

    def append_retry(self, reason: str) -> None:
        """An append was tried again."""
        self._append_retries.add(label(reason))

    def unknown_outcome(self, reason: str) -> None:
        """A tool call began and nobody knows how it ended."""
        self._unknown_outcomes.add(label(reason))

    def replay(self, reason: str) -> None:
        """A stream read stored events before live ones, or a request was answered from its record."""
        self._replays.add(label(reason))

    def slow_consumer(self, reason: str) -> None:
        """A stream ended because its reader did not keep up."""
        self._slow_consumers.add(label(reason))

    def hints_lost(self, reason: str) -> None:
        """The stream of hints broke, or could not be opened; until it is open again, this process polls."""
        self._hints_lost.add(label(reason))

    def set_active_sessions(self, count: int) -> None:
        """Counted in the database: every replica reports the same number."""
        self._sessions.set(count)

    def set_pending_approvals(self, count: int) -> None:
        """Counted in the database: every replica reports the same number."""
        self._pending_approvals.set(count)

    def connection_opened(self) -> None:
        self._connections.add()

    def connection_closed(self) -> None:
        self._connections.add(amount=-1)

    def stream_opened(self) -> None:
        self._streams.add()

    def stream_closed(self) -> None:
        self._streams.add(amount=-1)

    def turn_began(self) -> None:
        """This process began to work on a turn: a claim, not an acceptance."""
        self._turns.add()

    def turn_ended(self) -> None:
        """This process works on the turn no more, for whatever reason."""
        self._turns.add(amount=-1)

    def _conventional(self, make: Instruments) -> None:
        self._rpc_duration = make.histogram(
            "rpc.server.call.duration",
            "s",
            "Duration of a call as the server saw it.",
            "rpc.system.name",
            "rpc.method",
            "rpc.response.status_code",
            "error.type",
            buckets=_CALL,
        )
        self._model_duration = make.histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Duration of a call to a model.",
            *_MODEL_LABELS,
            "error.type",
            buckets=_MODEL,
        )
        self._token_usage = make.histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of a call to a model, as its server counted them.",
            *_MODEL_LABELS,
            "gen_ai.token.type",
            buckets=_TOKENS,
        )
        self._first_chunk = make.histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "From the request to the model's first chunk.",
            *_MODEL_LABELS,
            buckets=_MODEL,
        )

    def _work(self, make: Instruments) -> None:
        def seconds(name: str, description: str, *labels: str, buckets: tuple[float, ...]) -> Distribution:
            return make.histogram(name, "s", description, *labels, buckets=buckets)

        self._messages = make.counter("turnkeeper.messages", "{message}", "Messages that became durable.", "role")
        self._tool_calls = make.counter(
            "turnkeeper.tool_calls", "{call}", "Tool calls that ended.", "source", "class", "outcome"
        )
        self._errors = make.counter(
            "turnkeeper.errors", "{error}", "Errors that reached a caller or ended a turn.", "code"
        )
        self._approvals = make.counter("turnkeeper.approvals", "{approval}", "Approvals that ended.", "decision")
        self._tokens = make.histogram("turnkeeper.tokens", "{token}", "Tokens of a turn.", "kind", buckets=_TOKENS)
        self._response_duration = seconds(
            "turnkeeper.response.duration",
            "From a message's acceptance to the whole answer.",
            "agent",
            "model",
            buckets=_TURN,
        )
        self._tool_duration = seconds("turnkeeper.tool.duration", "Duration of a tool call.", "source", buckets=_WORK)
        self._turn_duration = seconds(
            "turnkeeper.turn.duration", "From a turn's acceptance to its end.", "outcome", buckets=_TURN
        )
        self._delivery_lag = seconds(
            "turnkeeper.event.delivery_lag", "From an event's commit to its delivery to a live stream.", buckets=_LAG
        )
        self._takeover_delay = seconds(
            "turnkeeper.takeover.delay",
            "From an owner's last renewal to the take-over of its turn.",
            buckets=_TAKEOVER,
        )
        self._decision_time = seconds(
            "turnkeeper.approval.decision_time", "From an approval's request to its decision.", buckets=_PERSON
        )

    def _levels(self, make: Instruments) -> None:
        self._sessions = make.gauge("turnkeeper.sessions.active", "{session}", "Active sessions in the database.")
        self._pending_approvals = make.gauge(
            "turnkeeper.approvals.pending", "{approval}", "Pending approvals in the database."
        )
        self._connections = make.level(
            "turnkeeper.connections.active", "{connection}", "Open connections of this process."
        )
        self._streams = make.level("turnkeeper.streams.active", "{stream}", "Open streams of this process.")
        self._turns = make.level("turnkeeper.turns.active", "{turn}", "Turns this process works on.")

    def _surprises(self, make: Instruments) -> None:
        def counter(name: str, unit: str, description: str) -> Total:
            return make.counter(f"turnkeeper.{name}", unit, description, "reason")

        self._takeovers = counter("takeovers", "{turn}", "Turns taken over from another worker.")
        self._fenced_writes = counter("fenced_writes", "{write}", "Writes refused because the lease is not the newest.")
        self._append_retries = counter("append_retries", "{retry}", "Appends tried again.")
        self._unknown_outcomes = counter("unknown_outcomes", "{call}", "Tool calls nobody knows the end of.")
        self._replays = counter("replays", "{replay}", "Reads of stored events, and answers from a request's record.")
        self._hints_lost = counter("hints_lost", "{stream}", "Streams of hints that broke or could not be opened.")
        self._slow_consumers = counter("slow_consumers", "{stream}", "Streams ended because the reader fell behind.")
