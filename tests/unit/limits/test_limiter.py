"""The limiter: what each principal and each tenant may do, and when a refused call may come back."""

import heapq
import random
import tracemalloc

from tests.unit.limits.desk import ADA, BOB, READ, SEND, WATCH, ZOE, Desk, a_profile
from turnkeeper.limits import limiter, promises
from turnkeeper.limits.bucket import MOST_PROMISED
from turnkeeper.limits.charge import Charge
from turnkeeper.limits.limiter import Person
from turnkeeper.limits.profile import DEFAULT, SMALL_TENANT


def test_each_principal_has_buckets_of_its_own_for_each_limit() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60, "reads": 120}))
    assert [desk.admitted(ADA), desk.admitted(ADA)] == [10, 0]
    assert desk.admitted(BOB) == 10
    assert desk.admitted(ADA, READ) == 12
    desk.now += 3
    assert desk.admitted(ADA) == 3


def test_a_tenant_has_a_total_that_other_tenants_do_not_feel() -> None:
    desk = Desk(a_profile(tenant={"messages": 60}))
    assert [desk.admitted(ADA), desk.admitted(BOB), desk.admitted(ZOE)] == [10, 0, 10]
    assert desk.reported["messages", "tenant", "REFUSED"] == 3


def test_the_built_in_profiles() -> None:
    assert [Desk(DEFAULT).admitted(ADA, method) for method in (SEND, READ)] == [120, 300]
    assert [Desk(SMALL_TENANT).admitted(ADA, method) for method in (SEND, READ)] == [10, 12]


def test_a_refused_call_is_admitted_when_its_time_has_come_and_not_before() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    desk.admitted(ADA)
    waits = [desk.call(ADA, key=number) for number in range(1, 4)]
    assert waits == [1.0, 2.0, 3.0]
    desk.now += 1 - 0.2
    assert desk.call(ADA, key=1) == 0.2, "it keeps its place in line"
    desk.now += 0.1
    assert isinstance(desk.call(ADA, key=1), Charge)
    assert isinstance(desk.call(ADA, key=1), float)


def test_clients_that_wait_as_told_are_admitted_each_time() -> None:
    """However many there are, whenever they begin, and whatever their timers and the network add."""
    rng = random.Random(4)
    desk = Desk(a_profile(principal={"SendMessage": 600}, tenant={"messages": 1200}))
    clients = [(desk.now + rng.random(), number, Person("blue", f"{number % 3}"), 0) for number in range(60)]
    heapq.heapify(clients)
    came_back = admitted = 0
    until = desk.now + 60
    while clients[0][0] < until:
        desk.now, number, person, tries = heapq.heappop(clients)
        answer = desk.call(person, key=number)
        if tries:
            came_back += 1
            admitted += isinstance(answer, Charge)
        wait = answer if isinstance(answer, float) else 0.0
        late = rng.expovariate(1 / 0.02)
        heapq.heappush(clients, (desk.now + wait + late, number + (not wait) * 1000, person, int(bool(wait))))
    assert came_back > 1000
    assert admitted == came_back
    assert 1000 < came_back < 1400, "twenty a second, and the first ones at once"


def test_a_promise_that_no_caller_comes_for_is_free_for_others() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    desk.admitted(ADA)
    for number in range(5):
        desk.call(ADA, key=number)
    desk.now += 4
    assert desk.admitted(ADA) == 0
    desk.now += promises.KEPT_SECONDS + 5
    assert desk.admitted(ADA) == 10, "it is full"


def test_only_so_many_tokens_are_promised() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    waits = [desk.call(ADA, key=number) for number in range(10 + MOST_PROMISED + 50)]
    refused = [wait for wait in waits if isinstance(wait, float)]
    assert refused[:3] == [1.0, 2.0, 3.0]
    assert max(refused) == refused[-1] == MOST_PROMISED


def test_promises_that_were_kept_are_no_longer_counted() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60_000}))
    desk.admitted(ADA)
    for moment in range(promises.MOST // 4):
        keys = [10 * moment + number for number in range(10)]
        assert [desk.call(ADA, key=key) for key in keys] == [promises.STEP] * 10
        desk.now += promises.STEP
        assert all(isinstance(desk.call(ADA, key=key), Charge) for key in keys)


def test_a_call_that_proves_a_repeat_gets_its_token_back_once() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}, tenant={"messages": 60}))
    charge = desk.call(ADA)
    assert isinstance(charge, Charge)
    charge.give_back()
    charge.give_back()
    assert desk.admitted(ADA) == 10


def test_with_an_empty_bucket_a_repeat_that_is_remembered_passes() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    desk.limiter.remember(7)
    desk.admitted(ADA)
    assert isinstance(desk.call(ADA, key=7), Charge)
    assert isinstance(desk.call(ADA, key=8), float)


def test_the_bodies_of_refused_calls_are_read_within_a_budget() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    desk.limiter.looked(ADA, 10 << 20)
    assert not desk.limiter.may_look(ADA)
    assert desk.limiter.may_look(BOB)
    desk.now += 60
    assert desk.limiter.may_look(ADA)


def test_caps_on_streams_waits_and_queued_turns() -> None:
    desk = Desk(a_profile(streams=2, waits=1, turns_queued=3))
    desk.limiter.streams[ADA] = 2
    assert desk.call(ADA, WATCH) == "streams"
    assert isinstance(desk.call(BOB, WATCH), Charge)
    desk.limiter.waits[ADA] = 1
    assert desk.call(ADA) == "waits"
    desk.queued["blue"] = 3
    assert desk.call(BOB) == "turns_queued"
    assert isinstance(desk.call(ZOE), Charge)
    assert desk.reported["turns_queued", "tenant", "REFUSED"] == 1


def test_a_tenant_queues_as_many_turns_as_may_run_unless_the_file_says_otherwise() -> None:
    desk = Desk(a_profile(turns_under_way=2))
    assert desk.limiter.most_running("blue") == 2
    desk.queued["blue"] = 2
    assert desk.call(ADA) == "turns_queued"


def test_in_shadow_mode_calls_are_counted_and_admitted() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}, streams=1, turns_under_way=1), is_shadow=True)
    desk.limiter.streams[ADA] = 1
    assert all(isinstance(desk.call(ADA, key=1), Charge) for _ in range(15))
    assert isinstance(desk.call(ADA, WATCH), Charge)
    assert desk.reported == {("SendMessage", "principal", "ADMITTED"): 5, ("streams", "principal", "ADMITTED"): 1}
    assert desk.limiter.most_running("blue") == 0
    desk.now += 1
    desk.limiter.charge(ADA, SEND)
    assert desk.reported["SendMessage", "principal", "ADMITTED"] == 5, "shadow calls take no tokens that are not there"


def test_a_new_table_counts_at_once() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}))
    desk.admitted(ADA)
    desk.table = None
    assert all(isinstance(desk.call(ADA), Charge) for _ in range(20))
    desk.table = Desk(a_profile(principal={"SendMessage": 6000})).table
    assert desk.admitted(ADA) == 0, "a higher rate fills the bucket from now on"
    desk.now += 1
    assert desk.admitted(ADA) == 100


def test_full_buckets_are_forgotten_and_memory_stays_bounded() -> None:
    desk = Desk(a_profile(principal={"SendMessage": 60}, tenant={"messages": 600}))
    desk.call(ADA)
    tracemalloc.start()
    for number in range(30_000):
        desk.now += 0.0001
        desk.call(Person(f"t{number % 50}", f"p{number % 5000}"), key=number)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 5 << 20
    assert desk.limiter.bucket_count <= limiter.MOST_BUCKETS
    desk.now += 10_000
    for number in range(limiter.MOST_BUCKETS):
        desk.call(Person("late", f"{number}"))
    desk.now += 10_000
    for number in range(limiter.SWEEP_FROM):
        desk.call(Person("later", f"{number}"))
    assert desk.limiter.bucket_count <= 2 * limiter.SWEEP_FROM
