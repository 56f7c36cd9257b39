"""Times in responses."""

from tests import harness
from turnkeeper.pb.v1 import session_pb2

SCRIPT = """
[[reply]]
tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "hello" } }]

[[reply]]
text = "Done."
"""


async def test_a_repeat_has_the_times_of_the_first_answer(mongo_uri: str, database_name: str) -> None:
    """Times are equal to the millisecond, in which they are stored."""
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        request = session_pb2.CreateSessionRequest(session_id="s1", agent="clerk")
        created = await stubs.sessions.CreateSession(request)
        assert (await stubs.sessions.CreateSession(request)).session == created.session
        assert created.session.create_time.nanos % 1_000_000 == 0

        await harness.send_message_to_session(stubs, "s1", "tell Ada")
        approval = await harness.wait_for_approval(stubs, "s1")
        decided = await harness.decide(stubs, approval, approve=False)
        assert (await harness.decide(stubs, approval, approve=False)).approval == decided.approval


async def test_a_session_was_changed_when_its_last_turn_ended(mongo_uri: str, database_name: str) -> None:
    async with (
        harness.scripted('[[reply]]\ntext = "Hello."\nfirst_delay = "20ms"') as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        session_id = await harness.create_test_session(stubs, agent="assistant")
        turn = await harness.send_message_to_session(stubs, session_id, "hi")
        session = (await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_id))).session
        assert session.update_time == turn.end_time
