"""Benchmarks of accuracy and of speed. Each subject is a command: ``python -m benchmarks.speed.serving``."""

from pathlib import Path

# `python -m benchmarks.serving`, as it was called before the rooms, goes on working
__path__ += [str(Path(__file__).with_name(room)) for room in ("accuracy", "speed")]
