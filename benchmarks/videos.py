"""Measure the estimate of a long video in the background: its speed, and the memory of each process over time.

    python -m benchmarks.videos repeat mouse.mp4 --times 47 --out hour.mp4
    ppl up &
    python -m benchmarks.videos estimate mouse hour.mp4 --stack PID --csv hour.csv

``repeat`` writes a video that shows another one several times, without encoding it again. ``estimate`` sends a video
for csv in the background and streams the table into a file. ``--stack`` is the process id of ``ppl up``: every second
the resident memory of the processes below it is read, by what they do. Prints frames a second, rows of the table, CPU
seconds of each process, which a busy machine changes less, and for each tenth of the time the highest memory in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av

from service.client import Client

ROLES = {
    "video_decoder": "decoder",
    "video_overlay": "overlay",
    "gateway.serve": "gateway",
    "inference": "worker",
    "valkey": "valkey",
}
"""A process's role, by a part of its command line."""

_PARTS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    if options.command == "repeat":
        print(f"{options.out}: {repeat(options.video, options.times, options.out)} frames")
    else:
        print(json.dumps(estimate(options.url, options.category, options.video, options.stack, options.csv), indent=1))
    return 0


def repeat(video: Path, times: int, out: Path) -> int:
    """Write a video that shows another one several times, its packets copied; return the number of frames."""
    written = 0
    length = _length(video)
    with av.open(str(out), "w") as target:
        copy = None
        for number in range(times):
            with av.open(str(video)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:  # closes the stream
                        continue
                    packet.pts, packet.dts = packet.pts + number * length, packet.dts + number * length
                    packet.stream = copy
                    target.mux(packet)
                    written += 1
    return written


def _length(video: Path) -> int:
    """Return how long a video is in units of its stream."""
    with av.open(str(video)) as source:
        times = sorted(packet.pts for packet in source.demux(source.streams.video[0]) if packet.pts is not None)
    return times[-1] - times[0] + (times[1] - times[0])


def estimate(url: str, category: str, video: Path, stack: int | None, csv: Path) -> dict[str, Any]:
    """Estimate a video's poses in the background and fetch the table; return the figures."""
    samples: list[tuple[float, dict[str, float]]] = []
    done = threading.Event()
    started = time.perf_counter()

    def watch(root: int) -> None:
        while not done.wait(1):
            samples.append((time.perf_counter() - started, dict(_memory_mib(root))))

    watcher = threading.Thread(target=watch, args=(stack,), daemon=True)
    with Client(url) as client:
        if stack is not None:
            watcher.start()
        sent = client.estimate_async(category, video=video, format="csv")
        accepted_s = time.perf_counter() - started
        before_s = _cpu_s(stack)
        ended = client.wait_estimate(sent.id, poll_s=2)
        estimated_s = time.perf_counter() - started
        cpu_s = {role: round(used - before_s.get(role, 0.0), 1) for role, used in _cpu_s(stack).items()}
        client.save_estimate(sent.id, csv)
        saved_s = time.perf_counter() - started
    done.set()
    with csv.open("rb") as file:
        rows = sum(1 for _ in file) - 3  # of the header
    return {
        "status": ended.status,
        "frames": ended.progress.done,
        "failed": ended.progress.failed,
        "rows": rows,
        "frames_per_s": round(ended.progress.done / (estimated_s - accepted_s), 1),
        "seconds": {"upload": round(accepted_s, 1), "estimate": round(estimated_s, 1), "csv": round(saved_s, 1)},
        "csv_bytes": csv.stat().st_size,
        "cpu_s": cpu_s,
        "memory_mib": summarise(samples),
    }


def summarise(samples: Sequence[tuple[float, dict[str, float]]]) -> dict[str, list[int]]:
    """Return by role the highest memory in each tenth of the time."""
    found: dict[str, list[int]] = defaultdict(lambda: [0] * _PARTS)
    end = samples[-1][0] + 1e-6 if samples else 1.0
    for at, memory in samples:
        for role, size in memory.items():
            part = int(at / end * _PARTS)
            found[role][part] = max(found[role][part], round(size))
    return dict(found)


def _memory_mib(root: int) -> Iterator[tuple[str, float]]:
    """Yield role and resident memory of the processes below one; those of the same role are added up."""
    total: dict[str, float] = defaultdict(float)
    for process, role, _ in _processes(root):
        try:
            total[role] += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20
        except OSError:  # it has ended
            continue
    yield from total.items()


def _cpu_s(root: int | None) -> dict[str, float]:
    """Return the CPU seconds of the processes below one by role, and of the gateway's that ended: they decoded."""
    total: dict[str, float] = defaultdict(float)
    for _, role, fields in _processes(root) if root is not None else ():
        own, ended = (sum(map(int, fields[first : first + 2])) / os.sysconf("SC_CLK_TCK") for first in (11, 13))
        total[role] += own
        if role == "gateway":
            total["decoder"] += ended
    return dict(total)


def _processes(root: int) -> Iterator[tuple[int, str, list[str]]]:
    """Yield id, role and the fields of /proc/ID/stat, from the state on, of the processes below one."""
    stats: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
    for process, fields in stats.items():
        above = process
        while above in stats and above != root:
            above = int(stats[above][1])
        if above != root:
            continue
        try:
            command = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        role = next((role for part, role in ROLES.items() if part in command), None)
        if role:
            yield process, role, fields


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.videos",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    repeated = commands.add_parser("repeat", help="write a video that shows another several times")
    repeated.add_argument("video", type=Path)
    repeated.add_argument("--times", type=int, required=True)
    repeated.add_argument("--out", type=Path, required=True)
    estimated = commands.add_parser("estimate", help="estimate a video and watch the memory")
    estimated.add_argument("category")
    estimated.add_argument("video", type=Path)
    estimated.add_argument("--url", default="http://127.0.0.1:8000")
    estimated.add_argument("--stack", type=int, metavar="PID", help="process of `ppl up` on this machine")
    estimated.add_argument("--csv", type=Path, required=True, help="file for the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
