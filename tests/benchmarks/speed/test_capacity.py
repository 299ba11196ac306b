"""The simulation of the platform: what follows from its rules, and the loads that were measured."""

import argparse

import pytest

from benchmarks.speed.capacity import COSTS, read_costs, validate
from benchmarks.speed.simulation import Clock, Costs, Layout, Linear, Machine, Simulation, Threads

NOTHING = Linear(0.0, 0.0)
FREE = dict.fromkeys(("client", "loop", "pool", "valkey", "worker", "received", "sent"), NOTHING)


def test_threads_share_the_cores_equally():
    clock = Clock()
    machine = Machine(clock, cores=2)
    ended = {}
    for name, seconds in {"a": 1.0, "b": 1.0, "c": 2.0}.items():
        Threads(machine).work(seconds)(lambda name=name: ended.update({name: clock.now}))
    clock.run(10.0)
    # two thirds of a core each until a and b end at 1.5; c has one for the second that is left
    assert ended == {"a": pytest.approx(1.5), "b": pytest.approx(1.5), "c": pytest.approx(2.5)}


def test_one_thread_works_in_order_on_one_core():
    clock = Clock()
    thread, ended = Threads(Machine(clock, cores=4)), []
    for seconds in (1.0, 2.0):
        thread.work(seconds)(lambda: ended.append(clock.now))
    clock.run(10.0)
    assert ended == [pytest.approx(1.0), pytest.approx(3.0)]


@pytest.mark.parametrize(
    ("part", "layout", "per_s"),
    [
        ("worker", Layout(workers=1), 32 / 0.032),
        ("worker", Layout(workers=4, gateways=4), 4 * 32 / 0.032),
        ("valkey", Layout(workers=100, gateways=4), 32 / 0.032),
        ("pool", Layout(workers=100, decode_threads=2), 2 / 0.001),
        ("loop", Layout(workers=100), 1 / 0.001),
    ],
)
def test_the_slowest_part_gives_the_rate(part, layout, per_s):
    costs = Costs(**{**FREE, part: Linear(0.0, 0.001)}, hop_s=0.0)
    found = Simulation(costs, layout).run(2.0, 1.0, clients=400)
    assert found.per_s == pytest.approx(per_s, rel=0.05)


def test_a_link_passes_only_its_bytes():
    costs = Costs(**{**FREE, "sent": Linear(0.0, 1e4)})
    found = Simulation(costs, Layout(workers=8, link_bytes_per_s=1e6)).run(4.0, 1.0, clients=64)
    assert found.per_s == pytest.approx(100, rel=0.05)


def test_gateways_that_each_count_on_all_workers_send_small_batches():
    costs, _ = read_costs(COSTS)
    runs = {
        shared: Simulation(costs, Layout(8, 8, is_shared=shared)).run(0.5, 0.5, rate=3000.0) for shared in (True, False)
    }
    sizes = {shared: sum(run.batches) / len(run.batches) for shared, run in runs.items()}
    assert sizes[True] > 1.5 * sizes[False]
    assert runs[True].ms(99) < runs[False].ms(99)


def test_simulates_the_loads_that_were_measured():
    rows = validate(argparse.Namespace(costs=COSTS)).rows
    assert len(rows) >= 10
    assert max(abs(row["pictures_per_s_%"]) for row in rows) < 15
    assert max(abs(row["p50_ms_%"]) for row in rows) < 15
    assert max(abs(row["batch_%"]) for row in rows) < 30
