"""A discrete-event simulation of the platform: closed clients or open arrivals, gateways, Valkey and inference workers.

Time is simulated; what each part costs comes from measurements (:class:`Costs`). Processes are generators that yield
what they wait for, a function that takes the function to call then, so that each reads from top to bottom. The loop is
our own because it is twenty lines, and simpy would need several times as long for the millions of events of 1,000
workers (it makes an object of each event).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from .timing import percentile

Then = Callable[[], None]
Process = Generator[Callable[[Then], None]]


class Clock:
    """The simulated time and what happens next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, then: Then) -> None:
        """Call a function later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), then))

    def start(self, process: Process) -> None:
        """Run a process until it waits for something, and again then."""
        wait = next(process, None)
        if wait is not None:
            wait(lambda: self.start(process))

    def run(self, until: float) -> None:
        """Let everything happen until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, then = heapq.heappop(self._events)
            then()
        self.now = until


class Machine:
    """Cores that the threads ready to run share equally, as the kernel's scheduler lets them."""

    def __init__(self, clock: Clock, cores: float) -> None:
        self._clock, self._cores = clock, cores
        self._ready: list[tuple[float, int, Then]] = []  # by the progress at which each is done
        self._progress = self._updated_at = 0.0  # seconds of processor time that a thread here would have had
        self._numbers, self._generation = itertools.count(), 0

    def compute(self, seconds: float, then: Then) -> None:
        """Use processor time on one core."""
        self._update()
        heapq.heappush(self._ready, (self._progress + seconds, next(self._numbers), then))
        self._plan()

    def _rate(self) -> float:
        return min(1.0, self._cores / len(self._ready))

    def _update(self) -> None:
        if self._ready:
            self._progress += (self._clock.now - self._updated_at) * self._rate()
        self._updated_at = self._clock.now

    def _plan(self) -> None:
        self._generation += 1
        if self._ready:
            generation = self._generation
            left_s = max(0.0, self._ready[0][0] - self._progress) / self._rate()
            self._clock.after(left_s, lambda: self._end_first(generation))

    def _end_first(self, generation: int) -> None:
        if generation == self._generation:  # else others came or went since
            self._update()
            then = heapq.heappop(self._ready)[2]
            self._plan()
            then()


class Threads:
    """Threads of a process that work off one queue in order; ``busy_s`` adds up what they computed."""

    def __init__(self, machine: Machine, count: int = 1, spread: Callable[[], float] = lambda: 1.0) -> None:
        self._machine, self._free, self.busy_s, self._spread = machine, count, 0.0, spread
        self._queue: deque[tuple[float, Then]] = deque()

    def work(self, seconds: float) -> Callable[[Then], None]:
        """Return what a process yields to have this computed by a thread."""
        return lambda then: self._add(seconds, then)

    def _add(self, seconds: float, then: Then) -> None:
        self._queue.append((seconds * self._spread(), then))
        self._next()

    def _next(self) -> None:
        if self._queue and self._free:
            seconds, then = self._queue.popleft()
            self._free -= 1
            self.busy_s += seconds
            self._machine.compute(seconds, lambda: self._end(then))

    def _end(self, then: Then) -> None:
        self._free += 1
        self._next()
        then()


@dataclass(frozen=True)
class Linear:
    """A cost of a batch: a fixed part, and one for each picture."""

    batch: float
    picture: float

    def of(self, pictures: int) -> float:
        """Return the cost of a batch."""
        return self.batch + self.picture * pictures


@dataclass(frozen=True)
class Costs:
    """Processor seconds, and bytes through Valkey, in batches of one-picture requests.

    Attributes:
        client: the load generator's.
        loop: the gateway's event loop.
        pool: its threads that decode (a picture) and send (a batch).
        worker: with the model, where that runs on the processor.
        model_s: the model's time on a device of its own, which keeps no core busy; a batch.
        received, sent: bytes that Valkey gets and gives.
        hop_s: from one machine, or process, to another.
        spread: standard deviation of a piece of work's logarithm, about these means.
    """

    client: Linear
    loop: Linear
    pool: Linear
    valkey: Linear
    worker: Linear
    received: Linear
    sent: Linear
    model_s: Linear = Linear(0.0, 0.0)
    hop_s: float = 0.00005
    spread: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Numbers of parts, where they run, and the gateway's settings of the same names.

    Attributes:
        cores: of one machine that everything shares with the clients; None gives each gateway and worker its own.
        gateway_cores: of a gateway's machine.
        shards: Valkey servers, over which categories are spread evenly.
        link_bytes_per_s: of each Valkey server, in each direction; None for the loopback.
        is_shared: whether gateways divide the number of workers for their batches in flight, unless these are full.
        is_routed: whether a gateway gets the requests of one shard only, as by a proxy in front.
        beat: a gateway's and Valkey's processor seconds and the bytes to read one worker's heartbeat, once a second.
    """

    gateways: int = 1
    workers: int = 1
    cores: float | None = None
    gateway_cores: int = 4
    decode_threads: int = 2
    shards: int = 1
    link_bytes_per_s: float | None = None
    batch_limit: int = 32
    batch_wait_s: float = 0.08
    queue_limit: int = 512
    is_shared: bool = True
    is_routed: bool = False
    beat: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Valkey:
    """One thread and a link; batches wait here for workers."""

    def __init__(self, clock: Clock, thread: Threads, layout: Layout) -> None:
        self._clock, self.thread = clock, thread
        self.batches: deque[Batch] = deque()
        self.idle: deque[Then] = deque()
        self._bytes_per_s = layout.link_bytes_per_s
        self._free_at = {"received": 0.0, "sent": 0.0}
        self.bytes = {"received": 0.0, "sent": 0.0}

    def transfer(self, direction: str, size: float) -> Callable[[Then], None]:
        """Return what a process yields to pass bytes over the link, one transfer after the other."""

        def wait(then: Then) -> None:
            self.bytes[direction] += size
            start = max(self._clock.now, self._free_at[direction])
            self._free_at[direction] = end = start + (size / self._bytes_per_s if self._bytes_per_s else 0.0)
            self._clock.after(end - self._clock.now, then)

        return wait

    def put(self, batch: Batch) -> None:
        """Queue a batch, for the worker that has waited longest."""
        self.batches.append(batch)
        if self.idle:
            self.idle.popleft()()

    def wait(self, then: Then) -> None:
        """Call a function when there is a batch."""
        if self.batches:
            then()
        else:
            self.idle.append(then)


class Gateway(NamedTuple):
    """The threads of a gateway."""

    loop: Threads
    pool: Threads


@dataclass(eq=False)
class Lane:
    """What one gateway has for one Valkey: the state that the batching rule looks at."""

    gateway: Gateway
    shard: Valkey
    sender: Threads
    waiting: deque[tuple[float, Then]] = field(default_factory=deque)
    announced: int = 0
    in_flight: int = 0
    pending: int = 0


@dataclass(eq=False)
class Batch:
    """Images on their way, each with what continues its request."""

    lane: Lane
    pictures: list[Then]


class Simulation:
    """A run of the platform; all gateways and workers of a shard share its Valkey.

    Attributes:
        latencies_s: of the requests that began and ended after the warm-up.
        per_s, load: requests answered, and processor seconds and bytes used, a second after the warm-up.
        batches: numbers of pictures of the batches.
        refused: requests that found no room.
    """

    def __init__(self, costs: Costs, layout: Layout, seed: int = 0) -> None:
        self.costs, self.layout, self.clock, self.random = costs, layout, Clock(), random.Random(seed)
        shared = Machine(self.clock, layout.cores) if layout.cores else None

        def machine(cores: float) -> Machine:
            return shared or Machine(self.clock, cores)

        self.client = self._threads(machine(1)) if shared else None  # elsewhere the clients are not ours to pay for
        self.shards = [Valkey(self.clock, self._threads(machine(1)), layout) for _ in range(layout.shards)]
        machines = [machine(layout.gateway_cores) for _ in range(layout.gateways)]
        self.gateways = [Gateway(self._threads(own), self._threads(own, layout.decode_threads)) for own in machines]
        self._machines, self._lanes = machines, dict[tuple[int, int], Lane]()
        self.workers = [self._threads(machine(1)) for _ in range(layout.workers)]
        for number, worker in enumerate(self.workers):
            self.clock.start(self._worker(worker, self.shards[number % layout.shards]))
        if any(layout.beat):
            for number, gateway in enumerate(self.gateways):
                self.clock.start(self._read_heartbeats(gateway, number))
        self.latencies_s: list[float] = []
        self.per_s, self.load = 0.0, dict[str, float]()
        self.batches: list[int] = []
        self.refused = self.answered = 0
        self._counts_from = 0.0

    def run(self, seconds: float, warm_up_s: float, clients: int = 0, rate: float = 0.0) -> Simulation:
        """Run clients that each wait for their answer before they send again, or requests at a rate (Poisson's)."""
        self._counts_from = warm_up_s
        for number in range(clients):
            self.clock.start(self._client(number))
        if rate:
            self.clock.start(self._arrivals(rate))
        self.clock.run(warm_up_s)
        before = self._busy()
        self.clock.run(warm_up_s + seconds)
        self.load = {name: (used - before[name]) / seconds for name, used in self._busy().items()}
        self.per_s = self.answered / seconds
        return self

    def _busy(self) -> dict[str, float]:
        """Return the processor seconds and bytes so far: of the busiest Valkey, and the mean of others."""
        return {
            "valkey": max(shard.thread.busy_s for shard in self.shards),
            "link": max(max(shard.bytes.values()) for shard in self.shards),
            "loop": statistics.fmean(gateway.loop.busy_s for gateway in self.gateways),
            "gateway": statistics.fmean(gateway.loop.busy_s + gateway.pool.busy_s for gateway in self.gateways),
            "worker": statistics.fmean(worker.busy_s for worker in self.workers),
        }

    def _threads(self, machine: Machine, count: int = 1) -> Threads:
        sigma = self.costs.spread
        return Threads(machine, count, lambda: self.random.lognormvariate(-sigma * sigma / 2, sigma))

    def ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds; infinite if nothing was answered."""
        return 1e3 * percentile(self.latencies_s, percent) if self.latencies_s else float("inf")

    def _client(self, number: int) -> Process:
        yield lambda then: self.clock.after(self.random.random() * 0.01, then)
        while True:
            yield from self._request(number)

    def _arrivals(self, rate: float) -> Process:
        for number in itertools.count():
            yield lambda then: self.clock.after(self.random.expovariate(rate), then)
            self.clock.start(self._request(number))

    def _hop(self, then: Then) -> None:
        self.clock.after(self.costs.hop_s, then)

    def _lane(self, gateway: int, shard: int) -> Lane:
        if (gateway, shard) not in self._lanes:
            sender = self._threads(self._machines[gateway])
            self._lanes[gateway, shard] = Lane(self.gateways[gateway], self.shards[shard], sender)
        return self._lanes[gateway, shard]

    def _request(self, number: int) -> Process:
        costs, started = self.costs, self.clock.now
        at = number % len(self.gateways)
        shard = at if self.layout.is_routed else self.random.randrange(len(self.shards))
        lane = self._lane(at, shard % len(self.shards))
        gateway = lane.gateway
        if self.client:
            yield self.client.work(costs.client.picture / 2)
        yield self._hop
        yield gateway.loop.work(costs.loop.picture / 2)
        if lane.pending + lane.announced >= self.layout.queue_limit:
            self.refused += 1
            yield lambda then: self.clock.after(1.0, then)
            return
        lane.announced += 1
        yield gateway.pool.work(costs.pool.picture)

        def enqueue(then: Then) -> None:
            lane.announced -= 1
            lane.pending += 1
            lane.waiting.append((self.clock.now, then))
            self._send_batches(lane)

        yield enqueue
        lane.pending -= 1
        yield gateway.loop.work(costs.loop.picture / 2)
        yield self._hop
        if self.client:
            yield self.client.work(costs.client.picture / 2)
        self.answered += self.clock.now >= self._counts_from
        if started >= self._counts_from:
            self.latencies_s.append(self.clock.now - started)

    def _send_batches(self, lane: Lane) -> None:
        """Follow the rule of `service.estimates.batching.Batcher`."""
        layout = self.layout
        workers = max(1, layout.workers // layout.shards)
        gateways = layout.gateways // (layout.shards if layout.is_routed else 1)
        share = math.ceil(workers / max(1, gateways)) if layout.is_shared else workers
        while lane.waiting:
            if lane.in_flight >= (share if len(lane.waiting) < layout.batch_limit else workers):
                return
            in_progress = len(lane.waiting) + lane.announced
            if lane.announced and len(lane.waiting) < min(layout.batch_limit, in_progress // 2):
                wait_s = lane.waiting[0][0] + layout.batch_wait_s - self.clock.now
                if wait_s > 0:
                    self.clock.after(wait_s, lambda: self._send_batches(lane))
                    return
            size = min(layout.batch_limit, len(lane.waiting))
            batch = Batch(lane, [lane.waiting.popleft()[1] for _ in range(size)])
            lane.in_flight += 1
            self.batches.append(size)
            self.clock.start(self._send(batch))

    def _send(self, batch: Batch) -> Process:
        costs, lane, size = self.costs, batch.lane, len(batch.pictures)
        yield lane.gateway.loop.work(costs.loop.batch / 2)
        yield lane.sender.work(costs.pool.batch)
        yield self._hop
        yield lane.shard.transfer("received", costs.received.of(size))
        yield lane.shard.thread.work(costs.valkey.of(size) / 2)
        lane.shard.put(batch)

    def _worker(self, thread: Threads, shard: Valkey) -> Process:
        costs = self.costs
        while True:
            yield shard.wait
            batch = shard.batches.popleft()
            size = len(batch.pictures)
            yield shard.thread.work(costs.valkey.of(size) / 4)
            yield shard.transfer("sent", costs.sent.of(size))
            yield self._hop
            yield thread.work(costs.worker.of(size))
            yield partial(self.clock.after, costs.model_s.of(size))
            yield self._hop
            yield shard.thread.work(costs.valkey.of(size) / 4)
            self.clock.start(self._deliver(batch))

    def _deliver(self, batch: Batch) -> Process:
        yield self._hop
        yield batch.lane.gateway.loop.work(self.costs.loop.batch / 2)
        batch.lane.in_flight -= 1
        for then in batch.pictures:
            then()
        self._send_batches(batch.lane)

    def _read_heartbeats(self, gateway: Gateway, number: int) -> Process:
        """Look once a second which workers live; the heartbeats are at the Valkey that the workers serve."""
        loop_s, valkey_s, size = (each * self.layout.workers / self.layout.shards for each in self.layout.beat)
        yield lambda then: self.clock.after(number / len(self.gateways), then)
        while True:
            for shard in self.shards:
                yield shard.thread.work(valkey_s)
                yield shard.transfer("sent", size)
                yield gateway.loop.work(loop_s)
            yield lambda then: self.clock.after(1.0, then)
