"""RetryTurn retries the turn that the caller means, whatever became of the turn before."""

from tests import harness
from turnkeeper.pb.v1 import chat_pb2

SCRIPT = """
[[reply]]
match = "long"
text = "A long answer that takes its time."
delay = "200ms"

[[reply]]
text = "You said: {user}"
"""


async def test_a_turn_that_was_cancelled_in_the_queue_is_answered_when_it_is_retried(
    mongo_uri: str, database_name: str
) -> None:
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="assistant")
        first = await harness.send_message_to_session(stubs, session, "something long", wait=0)
        queued = await harness.send_message_to_session(
            stubs, session, "the second", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        for turn in (queued, first):
            cancelled = await stubs.chat.CancelTurn(
                chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)
            )
            assert cancelled.turn.state == chat_pb2.TURN_STATE_CANCELLED

        await stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=session, turn_id=queued.turn_id, request_id=harness.new_request_id())
        )
        ended = await harness.wait_for_turn(stubs, session, queued.turn_id)
        assert harness.answer_of(ended) == "You said: the second"
        of_the_second = [e for e in await harness.all_events(stubs, session) if e.turn_id == queued.turn_id]
        assert harness.kinds(of_the_second) == [
            "message_received",
            "turn_queued",
            "turn_cancelled",
            "turn_retried",
            "turn_started",
            "message_completed",
            "turn_completed",
        ]
