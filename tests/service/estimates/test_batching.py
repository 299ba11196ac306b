"""How batches are formed, bounded and ended; with the queue replaced by a list."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st

from service.contract.errors import (
    EstimateTimeout,
    ModelFailed,
    PPLError,
    QueueFull,
    RedisUnavailable,
    WorkerUnavailable,
)
from service.contract.messages import BatchReply
from service.estimates.batching import Batcher
from service.estimates.replies import Group
from service.estimates.tickets import BACKGROUND, STREAMED, URGENT, collect
from service.http.problems import StorageFull
from service.runtime.metrics import Metrics

DOG = Group("dog", "v1", 8, 0, False)
CAT = Group("cat", "v1", 8, 0, False)


def square(value: int = 0) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def reply_to(batch_id: str, pixels: np.ndarray, **changes) -> BatchReply:
    """Keypoint 0's x is the value of the picture's pixels, in 255ths."""
    count = len(pixels)
    keypoints = np.zeros((count, 3, 2), np.float32)
    keypoints[:, 0, 0] = pixels[:, 0, 0, 0] / 255
    values = {
        "keypoints": keypoints,
        "scores": np.ones((count, 3), np.float32),
        "trajectory": keypoints[:, None],
        "timing_ms": {"model": 2.0},
    }
    return BatchReply(batch_id=batch_id, **{**values, **changes})


class Line:
    """Stands for queue and worker: records what was sent and answers on demand."""

    def __init__(self, live: int = 1, **limits) -> None:
        self.live = live
        self.gone = False
        self.sent = []
        self.sent_again = []
        self.unanswered = deque()
        self.broken: Exception | None = None
        limits = {"batch_limit": 4, "queue_limit": 20, "timeout_s": 5.0, "late_s": 60.0, **limits}
        self.metrics = Metrics()
        self.batcher = Batcher(
            self._send,
            "ppl:reply:x",
            live_workers=lambda: self.live,
            workers_are_gone=lambda: self.gone,
            metrics=self.metrics,
            **limits,
        )

    async def _send(self, request, pixels):
        if self.broken:
            raise self.broken
        if pixels is None:
            self.sent_again.append(request)
            return
        array = np.frombuffer(pixels, np.uint8).reshape(request.count, request.side, request.side, 3)
        self.sent.append(request)
        self.unanswered.append((request, array))

    def answer(self, **changes):
        request, pixels = self.unanswered.popleft()
        self.batcher.deliver(reply_to(request.batch_id, pixels, **changes))

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)

    def ask(self, *values: int, group: Group = DOG, priority: int = URGENT) -> asyncio.Task:
        squares = [square(value) for value in values]
        return asyncio.create_task(self.batcher.estimate(group, squares, priority=priority))


def xs(ticket) -> list[int]:
    return [round(float(ticket.poses[index].keypoints[0, 0]) * 255) for index in range(len(ticket.squares))]


async def test_sends_at_once_when_nothing_is_in_flight():
    line = Line()
    task = line.ask(7)
    await line.settle()
    assert [request.count for request in line.sent] == [1]
    line.answer()
    assert xs(await task) == [7]
    assert line.batcher.pending == line.batcher.in_flight == line.batcher.waiting == 0


async def test_collects_while_a_batch_is_in_flight():
    line = Line()
    tasks = [line.ask(value) for value in range(6)]
    await line.settle()
    assert [request.count for request in line.sent] == [1]
    assert line.batcher.waiting == 5
    line.answer()
    await line.settle()
    assert [request.count for request in line.sent] == [1, 4]
    line.answer()
    await line.settle()
    line.answer()
    assert [xs(await task) for task in tasks] == [[0], [1], [2], [3], [4], [5]]
    assert [request.count for request in line.sent] == [1, 4, 1]


async def test_pictures_of_a_request_go_before_streams_and_these_before_the_background():
    line = Line()
    tasks = [line.ask(n, n + 1, n + 2, priority=BACKGROUND) for n in (10, 20, 30)]
    await line.settle()
    tasks += [line.ask(40, priority=STREAMED), line.ask(50), line.ask(60)]
    await line.settle()
    # the worker has a batch of the background: a more urgent one is sent, to be its next
    assert [(request.count, request.priority) for request in line.sent] == [(3, 6), (1, 3), (1, 0)]
    while line.unanswered:
        line.unanswered = deque(sorted(line.unanswered, key=lambda sent: sent[0].priority))  # as the worker takes them
        line.answer()
        await line.settle()
    assert [request.priority for request in line.sent[:4]] == [6, 3, 0, 0]
    assert {request.priority for request in line.sent[4:]} == {6}
    assert [xs(await task) for task in tasks] == [[n, n + 1, n + 2] for n in (10, 20, 30)] + [[40], [50], [60]]
    assert line.batcher.pending == line.batcher.in_flight == line.batcher.waiting == 0


async def test_background_batches_are_small_only_while_requests_come(monkeypatch):
    line = Line(batch_limit=4)
    tasks = [line.ask(*range(12), priority=BACKGROUND)]
    await line.settle()
    line.answer(timing_ms={"model": 200.0})
    await line.settle()
    tasks.append(line.ask(9))
    await line.settle()
    assert [request.count for request in line.sent] == [4, 4, 1]
    line.answer(timing_ms={"model": 200.0})
    line.answer()
    await line.settle()
    assert line.sent[-1].count == 1, "50 ms a picture are more than a small batch may take"
    monkeypatch.setattr("service.estimates.batching._URGENT_S", 0.0)
    line.answer()
    await line.settle()
    assert line.sent[-1].count == 3
    line.answer()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("priority", [STREAMED, BACKGROUND])
async def test_requests_without_end_leave_a_turn_to_others(monkeypatch, priority):
    monkeypatch.setattr("service.estimates.batching._TURN_S", 0.1)
    line = Line()
    tasks = [line.ask(0), line.ask(0), line.ask(1, 2, priority=priority)]
    started = time.monotonic()
    while not tasks[2].done():
        assert time.monotonic() - started < 2, "urgent ones always wait"
        await asyncio.sleep(0.005)
        tasks.append(line.ask(0))
        await line.settle()
        line.answer()
        await line.settle()
    assert time.monotonic() - started >= 0.1
    assert xs(tasks[2].result()) == [1, 2]
    assert {request.priority for request in line.sent} == {URGENT}, "a worker would leave it for urgent ones"
    while line.unanswered:
        line.answer()
        await line.settle()
    await asyncio.gather(*tasks)


async def test_late_batch_is_sent_again_as_an_urgent_one():
    line = Line(late_s=0.05)
    task = line.ask(3, priority=BACKGROUND)
    await asyncio.sleep(0.2)
    assert [request.priority for request in line.sent + line.sent_again] == [BACKGROUND, URGENT]
    line.answer()
    assert xs(await task) == [3]


async def test_a_request_does_not_wait_for_frames_that_are_being_decoded():
    line = Line(wait_s=60.0)
    with line.batcher.announce(8, STREAMED):
        task = line.ask(1)
        await line.settle()
        assert [request.count for request in line.sent] == [1]
        line.answer()
        assert xs(await task) == [1]


async def test_all_that_waits_fails_when_no_worker_was_seen_for_a_while():
    line = Line()
    tasks = [line.ask(1), line.ask(2, 3), line.ask(4, priority=BACKGROUND)]
    await line.settle()
    line.batcher.fail_without_workers(time.monotonic())
    await line.settle()
    assert not any(task.done() for task in tasks)
    line.gone = True
    line.batcher.fail_without_workers(0.0)
    await line.settle()
    assert not any(task.done() for task in tasks), "one may be seen in the next second"
    line.batcher.fail_without_workers(time.monotonic())
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, WorkerUnavailable)
    assert line.batcher.pending == line.batcher.waiting == 0


async def test_gateway_keeps_to_its_share_of_the_workers_unless_its_batches_are_full():
    line = Line(live=6, live_gateways=lambda: 4)
    tasks = [line.ask(0)]
    await line.settle()
    tasks.append(line.ask(1))
    await line.settle()
    assert [request.count for request in line.sent] == [1, 1]  # six workers for four gateways: two each, rounded up
    tasks += [line.ask(value) for value in range(2, 5)]
    await line.settle()
    assert [request.count for request in line.sent] == [1, 1]
    tasks.append(line.ask(5))
    await line.settle()
    assert [request.count for request in line.sent] == [1, 1, 4]
    tasks.append(asyncio.create_task(line.batcher.estimate(DOG, [square(value) for value in range(6, 14)])))
    tasks.append(asyncio.create_task(line.batcher.estimate(DOG, [square(14)] * 6)))
    await line.settle()
    assert [request.count for request in line.sent] == [1, 1, 4, 4, 4, 4]  # as many as workers, and no more
    while line.unanswered:
        line.answer()
        await line.settle()
    assert [x for task in tasks for x in xs(await task)] == [*range(14), *[14] * 6]


async def test_waits_for_pictures_that_are_made_ready_until_half_of_all_wait():
    line = Line(wait_s=60.0)
    stack = contextlib.ExitStack()
    coming = [stack.enter_context(line.batcher.announce(1)) for _ in range(4)]
    tasks = []
    for value, announced in enumerate(coming[:3]):
        tasks.append(asyncio.create_task(line.batcher.estimate(DOG, [square(value)], announced)))
        await line.settle()
        assert [request.count for request in line.sent] == ([2] if value else []), value
    line.answer()
    await line.settle()
    # one waits and one is made ready: half of all
    assert [request.count for request in line.sent] == [2, 1]
    line.answer()
    assert [xs(await task) for task in tasks] == [[0], [1], [2]]


async def test_a_full_batch_waits_for_no_picture():
    line = Line(wait_s=60.0, queue_limit=200)
    with line.batcher.announce(100):
        tasks = [line.ask(value) for value in range(4)]
        await line.settle()
        assert [request.count for request in line.sent] == [4]
        line.answer()
        await asyncio.gather(*tasks)


async def test_waits_for_pictures_that_are_made_ready_only_so_long():
    line = Line(wait_s=0.05)
    with line.batcher.announce(10):
        started = time.monotonic()
        task = line.ask(1)
        await line.settle()
        assert not line.sent
        while not line.sent:
            await asyncio.sleep(0.001)
        assert 0.04 < time.monotonic() - started < 1
        line.answer()
        assert xs(await task) == [1]


async def test_pictures_that_can_not_be_made_ready_hold_up_no_others():
    line = Line(wait_s=60.0)
    coming = line.batcher.announce(10)
    coming.__enter__()
    task = line.ask(1)
    await line.settle()
    assert not line.sent
    coming.__exit__(None, None, None)
    await line.settle()
    line.answer()
    assert xs(await task) == [1]


async def test_as_many_batches_in_flight_as_workers_live():
    line = Line(live=3)
    tasks = [line.ask(value) for value in range(5)]
    await line.settle()
    assert len(line.sent) == 3
    line.live = 0  # one is tried all the same: a worker may be on its way
    for _ in range(3):
        line.answer()
        await line.settle()
    while line.unanswered:
        line.answer()
        await line.settle()
    await asyncio.gather(*tasks)


async def test_a_request_of_many_pictures_is_spread_over_batches_and_joined():
    line = Line()
    task = line.ask(*range(11))
    for _ in range(3):
        await line.settle()
        line.answer()
    ticket = await task
    assert xs(ticket) == list(range(11))
    assert [request.count for request in line.sent] == [4, 4, 3]
    assert ticket.model_ms == 6.0


async def test_groups_are_not_mixed():
    line = Line()
    groups = [DOG, CAT, DOG._replace(version="v2"), DOG._replace(refine_steps=1), DOG._replace(link_map=True)]
    first = line.ask(1)
    await line.settle()
    tasks = [line.ask(value, group=group) for value in (1, 2) for group in groups]
    await line.settle()
    while line.unanswered:
        link_map = line.unanswered[0][0].link_map
        count = line.unanswered[0][0].count
        line.answer(link_map=np.zeros((count, 8, 8), np.uint8) if link_map else None)
        await line.settle()
    await asyncio.gather(first, *tasks)
    seen = [Group(r.category, r.version, r.side, r.refine_steps, r.link_map) for r in line.sent[1:]]
    assert sorted(seen) == sorted(groups)
    assert all(request.count == 2 for request in line.sent[1:])


async def test_a_busy_group_does_not_starve_a_quiet_one():
    line = Line()
    dogs = [line.ask(value) for value in range(9)]
    cat = line.ask(99, group=CAT)
    await line.settle()
    for _ in range(3):
        line.answer()
        await line.settle()
    assert [request.category for request in line.sent[:3]] == ["dog", "dog", "cat"]
    while line.unanswered:
        line.answer()
        await line.settle()
    await asyncio.gather(*dogs, cat)


async def test_message_says_what_the_worker_needs():
    line = Line(timeout_s=30.0)
    task = line.ask(1, 2, group=Group("dog", "v9", 8, 2, True))
    await line.settle()
    (request,) = line.sent
    assert (request.category, request.version, request.count, request.side) == ("dog", "v9", 2, 8)
    assert (request.refine_steps, request.link_map, request.reply_to) == (2, True, "ppl:reply:x")
    assert 28 < request.timeout_s <= 30
    assert 28 < request.deadline - time.time() <= 30
    line.answer(link_map=np.zeros((2, 8, 8), np.uint8))
    assert (await task).poses[1].link_map.shape == (8, 8)


async def test_refuses_beyond_the_bound_and_recovers():
    line = Line(queue_limit=5)
    first = line.ask(1, 2, 3)
    await line.settle()
    with pytest.raises(QueueFull) as caught:
        await line.batcher.estimate(DOG, [square()] * 3)
    assert caught.value.retry_after_s == 1, "the least, for three pictures are soon done"
    assert line.metrics.rejected._value.get() == 1
    assert "3 of at most 5 pictures are waiting" in caught.value.detail
    second = line.ask(4, 5)
    await line.settle()
    line.answer()
    await line.settle()
    line.answer()
    assert xs(await first) + xs(await second) == [1, 2, 3, 4, 5]
    assert line.batcher.pending == 0
    line.batcher.check_room(5)


async def test_times_out_and_says_whether_a_worker_lives():
    line = Line(timeout_s=0.05)
    with pytest.raises(EstimateTimeout) as busy:
        await line.batcher.estimate(DOG, [square()])
    line.live = 0
    with pytest.raises(WorkerUnavailable) as gone:
        await line.batcher.estimate(DOG, [square()])
    assert busy.value.retry_after_s
    assert gone.value.retry_after_s
    assert line.batcher.pending == line.batcher.waiting == 0


async def test_a_batch_that_is_never_answered_is_forgotten():
    line = Line(timeout_s=0.05)
    with pytest.raises(EstimateTimeout):
        await line.batcher.estimate(DOG, [square()])
    await asyncio.sleep(0.02)
    assert line.batcher.in_flight == 0
    task = line.ask(5)
    await line.settle()
    line.unanswered.popleft()
    line.answer()
    assert xs(await task) == [5]


async def test_a_batch_that_is_never_answered_lets_the_next_go_once_its_time_is_over():
    line = Line(timeout_s=0.3)
    first = line.ask(1)
    await asyncio.sleep(0.15)
    second = line.ask(2)
    with pytest.raises(EstimateTimeout):
        await first
    await line.settle()
    line.unanswered.popleft()
    line.answer()
    assert xs(await second) == [2]


async def test_a_batch_may_be_answered_until_the_last_of_its_requests_times_out():
    line = Line()
    tasks = [line.ask(1), line.ask(2)]
    await asyncio.sleep(0.05)
    tasks.append(line.ask(3))
    await line.settle()
    line.answer()
    await line.settle()
    early, late = line.sent
    assert late.count == 2
    assert late.timeout_s > early.timeout_s - 0.04, "it was sent later, and has a request that came later"
    assert late.deadline > early.deadline + 0.04
    line.answer()
    assert [xs(await task) for task in tasks] == [[1], [2], [3]]


async def test_a_late_batch_does_not_hold_back_others():
    line = Line(late_s=0.05)
    first = line.ask(1)
    await line.settle()
    second = line.ask(2)
    await line.settle()
    assert len(line.sent) == 1
    await asyncio.sleep(0.08)
    assert len(line.sent) == 2
    line.answer()
    line.answer()
    assert xs(await first) + xs(await second) == [1, 2]


async def test_a_late_reply_is_dropped():
    line = Line(timeout_s=0.03)
    with pytest.raises(EstimateTimeout):
        await line.batcher.estimate(DOG, [square()])
    await asyncio.sleep(0.02)
    line.answer()
    line.batcher.deliver(BatchReply(batch_id="never sent"))
    assert line.batcher.pending == 0


async def test_cancelled_request_leaves_nothing_behind():
    line = Line()
    first = line.ask(1)
    await line.settle()
    gone, stays = line.ask(2, 3), line.ask(4)
    await line.settle()
    gone.cancel()
    await asyncio.wait([gone])
    assert line.batcher.pending == 2
    assert line.batcher.waiting == 1
    line.answer()
    await line.settle()
    assert [request.count for request in line.sent] == [1, 1]
    line.answer()
    assert xs(await first) + xs(await stays) == [1, 4]


async def test_cancelled_request_in_flight_does_not_harm_those_beside_it():
    line = Line()
    first = line.ask(1)
    await line.settle()
    gone, stays = line.ask(2), line.ask(3)
    await line.settle()
    line.answer()
    await line.settle()
    assert line.sent[-1].count == 2
    gone.cancel()
    await asyncio.wait([gone])
    line.answer()
    assert xs(await stays) == [3]
    await first
    assert line.batcher.pending == line.batcher.in_flight == 0


async def test_the_workers_error_ends_all_requests_of_the_batch():
    line = Line()
    first = line.ask(1)
    await line.settle()
    tasks = [line.ask(2), line.ask(3)]
    await line.settle()
    line.answer()
    await line.settle()
    line.answer(error=ModelFailed("boom"))
    for task in tasks:
        with pytest.raises(ModelFailed, match="boom"):
            await task
    await first


async def test_one_failed_batch_ends_a_request_of_several():
    line = Line()
    task = line.ask(*range(6))
    await line.settle()
    line.answer(error=ModelFailed("boom"))
    with pytest.raises(ModelFailed):
        await task
    assert line.batcher.pending == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"keypoints": None},
        {"scores": np.ones((2, 3), np.float32)},
        {"trajectory": np.zeros((0, 1, 3, 2), np.float32)},
        {"keypoints": np.full((1, 3, 2), np.nan, np.float32)},
    ],
)
async def test_a_reply_that_does_not_fit_is_an_error(changes):
    line = Line()
    task = line.ask(1)
    await line.settle()
    line.answer(**changes)
    with pytest.raises(ModelFailed):
        await task


async def test_a_missing_link_map_is_an_error():
    line = Line()
    task = line.ask(1, group=DOG._replace(link_map=True))
    await line.settle()
    line.answer()
    with pytest.raises(ModelFailed, match="does not fit"):
        await task


async def test_queue_that_takes_nothing_ends_the_request_at_once():
    line = Line()
    line.broken = redis.exceptions.ConnectionError("refused")
    with pytest.raises(RedisUnavailable) as caught:
        await line.batcher.estimate(DOG, [square()])
    assert caught.value.retry_after_s
    line.broken = RuntimeError("a bug")
    with pytest.raises(PPLError, match="could not be sent"):
        await line.batcher.estimate(DOG, [square()])
    assert line.metrics.unsent._value.get() == 2
    line.broken = None
    task = line.ask(3)
    await line.settle()
    line.answer()
    assert xs(await task) == [3]


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12),
    limit=st.integers(1, 6),
)
def test_collect_takes_each_picture_once_in_order_and_never_mixes(sizes, limit):
    waiting = {}
    expected = {}
    for number, (name, count) in enumerate(sizes):
        group = Group(name, "v", 8, 0, False)
        waiting.setdefault(group, deque()).extend((group, number, index) for index in range(count))
        expected.setdefault(group, []).extend((group, number, index) for index in range(count))
    taken = {}
    while items := collect(waiting, limit):
        assert len(items) <= limit
        (group,) = {group for group, _, _ in items}
        taken.setdefault(group, []).extend(items)
    assert taken == expected
    assert waiting == {}


async def test_message_of_a_late_batch_is_sent_again_once_and_its_answer_counts():
    bench = Line(late_s=0.05)
    asking = bench.ask(7)
    await asyncio.sleep(0.2)
    assert [request.batch_id for request in bench.sent_again] == [request.batch_id for request in bench.sent]
    assert bench.sent_again[0].timeout_s < bench.sent[0].timeout_s
    bench.answer()
    assert xs(await asking) == [7]


async def test_answered_batch_is_not_sent_again():
    bench = Line(late_s=0.05)
    asking = bench.ask(7)
    await bench.settle()
    bench.answer()
    await asking
    await asyncio.sleep(0.1)
    assert bench.sent_again == []


async def test_answered_batch_keeps_no_square_in_memory():
    line = Line(late_s=60.0, timeout_s=60.0)
    squares = [square(7)]
    kept = weakref.ref(squares[0])
    task = asyncio.create_task(line.batcher.estimate(DOG, squares))
    await line.settle()
    line.answer()
    await task
    del squares, task
    await line.settle()
    gc.collect()
    assert kept() is None


async def test_batch_of_cancelled_requests_is_not_sent_again():
    bench = Line(late_s=0.05)
    asking = bench.ask(7)
    await bench.settle()
    asking.cancel()
    await asyncio.sleep(0.1)
    assert bench.sent_again == []


async def test_queue_that_fails_the_second_time_leaves_the_first_message_to_be_answered():
    bench = Line(late_s=0.05)
    asking = bench.ask(7)
    await bench.settle()
    bench.broken = redis.ConnectionError("gone")
    await asyncio.sleep(0.1)
    bench.answer()
    assert xs(await asking) == [7]


async def test_batch_whose_message_cannot_be_made_ends_at_once_and_holds_nothing_back():
    bench = Line()
    with pytest.raises(PPLError, match="could not be sent"):
        await asyncio.wait_for(bench.batcher.estimate(DOG._replace(refine_steps=999), [square()]), 1)
    with pytest.raises(PPLError, match="could not be sent"):
        await asyncio.wait_for(bench.batcher.estimate(DOG, [square(), np.zeros((4, 4, 3), np.uint8)]), 1)
    assert bench.batcher.in_flight == bench.batcher.pending == 0
    asking = bench.ask(7)
    await bench.settle()
    bench.answer()
    assert xs(await asking) == [7]


async def test_late_batch_makes_room_also_where_its_timer_ran_early(monkeypatch):
    bench = Line(late_s=0.05)
    clock = SimpleNamespace(monotonic=lambda: 100.0, time=time.time)  # as if no time had passed
    monkeypatch.setattr("service.estimates.batching.time", clock)
    first = bench.ask(1)
    await bench.settle()
    second = bench.ask(2)
    await asyncio.sleep(0.08)
    assert len(bench.sent) == 2
    bench.answer()
    bench.answer()
    assert xs(await first) + xs(await second) == [1, 2]


async def test_late_batch_makes_room_also_where_it_cannot_be_sent_again(monkeypatch):
    bench = Line(late_s=0.05)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    first = bench.ask(1)
    await bench.settle()
    second = bench.ask(2)
    await bench.settle()
    monkeypatch.setattr(bench.batcher, "_launch_again", lambda request: 1 / 0)
    await asyncio.sleep(0.08)
    assert len(bench.sent) == 2
    bench.answer()
    bench.answer()
    assert xs(await first) + xs(await second) == [1, 2]


async def test_redis_on_a_full_disk_is_reported_as_that():
    line = Line()
    line.broken = redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device")
    with pytest.raises(StorageFull):
        await line.batcher.estimate(DOG, [square()])
