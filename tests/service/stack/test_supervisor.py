"""The supervisor with simple child processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.stack.supervisor import Child, ChildFailedError, ChildSpec, RestartPolicy, Supervisor

POLICY = RestartPolicy(first_delay_s=0.02, max_delay_s=0.1, quick_s=1.0, quick_limit=3)
SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*specs: ChildSpec, policy: RestartPolicy = POLICY) -> Supervisor:
        made.append(Supervisor(specs, policy))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop(now=lambda: True)


def spec(tmp_path: Path, name: str, *command: str, **more: object) -> ChildSpec:
    return ChildSpec(name, command or SLEEP, tmp_path / f"{name}.log", **more)  # type: ignore[arg-type]


def start_and_watch(supervisor: Supervisor, stop: threading.Event) -> None:
    supervisor.start(stop)
    supervisor.wait_until(lambda: False, stop, timeout_s=5)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z" if Path("/proc").exists() else True


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_a_killed_child_is_started_again(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(spec(tmp_path, "one"))
    supervisor.start(stop)
    first = supervisor.child("one").pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    with caplog.at_level(logging.INFO):
        assert supervisor.wait_until(lambda: supervisor.child("one").starts == 2, stop, timeout_s=5)

    assert supervisor.child("one").pid not in (None, first)
    assert "one was killed by SIGKILL; restarting it in 0.02 s" in caplog.text
    assert "restarted child: name=one" in caplog.text


def test_a_child_that_always_dies_raises_with_the_tail_of_its_log(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    supervisor = supervise(
        spec(tmp_path, "bad", sys.executable, "-c", "import sys; sys.exit('no such thing as a pose')")
    )

    with pytest.raises(ChildFailedError, match=r"(?s)bad ended with exit code 1, 3 times in a row.*no such thing"):
        start_and_watch(supervisor, stop)


def test_a_command_that_does_not_exist_raises_with_the_reason(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    supervisor = supervise(spec(tmp_path, "absent", "/nowhere/to/be/found"))

    with pytest.raises(ChildFailedError, match="could not be started"):
        start_and_watch(supervisor, stop)


def test_a_child_that_fails_while_running_is_retried_forever(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(spec(tmp_path, "bad", sys.executable, "-S", "-c", "raise SystemExit(3)"))
    timer = threading.Timer(2.0, stop.set)
    timer.start()

    supervisor.start(stop)
    supervisor.run(stop)

    timer.join()
    assert supervisor.child("bad").starts > POLICY.quick_limit
    assert "next attempt in 0.1 s" in caplog.text


def test_delays_double_up_to_the_limit() -> None:
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=6)

    assert [policy.delay_s(n) for n in range(7)] == [0.5, 0.5, 1, 2, 4, 6, 6]
    assert policy.delay_s(10_000) == 6


def test_a_stage_starts_when_the_previous_one_is_ready_and_stops_before_it(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    order = tmp_path / "order"
    script = textwrap.dedent(f"""
        import signal, sys, time
        def note(what):
            with open({str(order)!r}, "a") as file: file.write(f"{{sys.argv[1]}} {{what}}\\n")
        def end(*_): note("ends"); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        note("starts")
        time.sleep(600)
    """)

    def notes() -> list[str]:
        return order.read_text().splitlines() if order.exists() else []

    supervisor = supervise(
        spec(tmp_path, "top", sys.executable, "-c", script, "top", stage=1, ready=lambda: "top starts" in notes()),
        spec(tmp_path, "base", sys.executable, "-c", script, "base", ready=lambda: "base starts" in notes()),
    )
    supervisor.start(stop)
    supervisor.stop()

    assert notes() == ["base starts", "top starts", "top ends", "base ends"]


def test_a_child_that_ignores_sigterm_is_killed(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    log = tmp_path / "deaf.log"
    supervisor = supervise(
        spec(
            tmp_path, "deaf", sys.executable, "-c", deaf, stop_timeout_s=0.3, ready=lambda: b"deaf" in log.read_bytes()
        )
    )
    supervisor.start(stop)
    pid = supervisor.child("deaf").pid
    assert pid is not None

    supervisor.stop()

    assert not alive(pid)
    assert "did not stop: name=deaf timeout_s=0.3" in caplog.text


def test_stop_during_the_start_returns_at_once(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    supervisor = supervise(spec(tmp_path, "never", ready=lambda: False), spec(tmp_path, "later", stage=1))
    threading.Timer(0.2, stop.set).start()

    supervisor.start(stop)

    assert supervisor.child("later").starts == 0


def test_environment_and_output_reach_the_child_and_its_log(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    script = "import os, sys, time; print(os.environ['PPL_WORD'], flush=True); sys.stderr.write('err'); time.sleep(600)"
    supervisor = supervise(spec(tmp_path, "talk", sys.executable, "-c", script, env={"PPL_WORD": "hello"}))
    supervisor.start(stop)

    assert within(5, lambda: supervisor.child("talk").log_tail() == "hello\nerr")


def test_a_large_log_is_trimmed_while_the_child_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervise: Callable[..., Supervisor], stop: threading.Event
) -> None:
    monkeypatch.setattr("service.stack.supervisor._LOG_LIMIT_BYTES", 1000)
    script = "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.01)"
    supervisor = supervise(spec(tmp_path, "long", sys.executable, "-c", script))
    supervisor.start(stop)
    log = tmp_path / "long.log"
    assert within(5, lambda: log.exists() and log.stat().st_size > 1000)

    supervisor.child("long").trim_log()

    assert (tmp_path / "long.log.1").stat().st_size > 1000
    assert within(5, lambda: 0 < log.stat().st_size < 1000)
    assert set(log.read_bytes()) == set(b"x\n")  # no null bytes in place of the old text


def test_tail_shows_the_last_run_only(tmp_path: Path, stop: threading.Event) -> None:
    (tmp_path / "echo.log").write_text("an older run\n")
    child = Child(spec(tmp_path, "echo", "/bin/echo", "this run"))
    child.start()
    assert child.process is not None
    child.process.wait(5)

    assert child.log_tail() == "this run"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux only")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, threading
        from pathlib import Path
        from service.stack.supervisor import ChildSpec, Supervisor
        supervisor = Supervisor([ChildSpec("one", {SLEEP!r}, Path({str(tmp_path)!r}) / "one.log")])
        stop = threading.Event()
        supervisor.start(stop)
        print(supervisor.child("one").pid, flush=True)
        supervisor.run(stop)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()

    assert within(3, lambda: not alive(pid))


def test_a_child_that_gives_no_sign_of_life_is_replaced(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stack.supervisor._HANG_CHECK_EVERY_S", 0.02)
    beats: dict[int, float] = {}
    dead: list[int] = []
    supervisor = supervise(spec(tmp_path, "one", last_beat=beats.get, hang_s=0.5, on_crash=dead.append))
    supervisor.start(stop)
    first = supervisor.child("one").pid
    assert first is not None
    # one that has given none yet is starting
    assert not supervisor.wait_until(lambda: supervisor.child("one").starts == 2, stop, timeout_s=1)

    def beat() -> bool:
        beats[first] = time.monotonic()
        return supervisor.child("one").starts == 2

    assert not supervisor.wait_until(beat, stop, timeout_s=1)
    assert supervisor.wait_until(lambda: supervisor.child("one").starts == 2, stop, timeout_s=5)
    assert dead == [first]
    assert not alive(first)


def test_a_child_is_not_killed_while_its_signs_of_life_are_unknown(
    tmp_path: Path, supervise: Callable[..., Supervisor], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stack.supervisor._HANG_CHECK_EVERY_S", 0.02)
    known = [1.0, None]  # Redis answers now and then

    def last_beat(pid: int) -> float | None:
        known.reverse()
        return known[0]

    supervisor = supervise(spec(tmp_path, "one", last_beat=last_beat, hang_s=0.3))
    supervisor.start(stop)
    assert not supervisor.wait_until(lambda: supervisor.child("one").starts == 2, stop, timeout_s=1)
