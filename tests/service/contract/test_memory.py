"""The heap's arenas, counted by glibc in a process with many threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, sys, threading
from service.contract.memory import limit_arenas
if "limited" in sys.argv: limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
together = threading.Barrier(6)
def work():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""

_RELEASE = """
import re
from service.contract.memory import release_memory
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
kept = [bytes(2000) if place % 100 == 0 else bytearray(2000) for place in range(50_000)]
kept = [block for block in kept if type(block) is bytes]
before = anonymous()
release_memory()
print(before, anonymous())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")


def _count_arenas(*arguments: str, **environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | environment,
    )
    return done.stdout.count("<heap nr=")


def test_threads_share_two_arenas() -> None:
    assert _count_arenas() > 3, "without the limit each thread has its own"
    assert _count_arenas("limited") == 2


def test_setting_of_the_environment_goes_first() -> None:
    assert _count_arenas("limited", MALLOC_ARENA_MAX="3") == 3


def test_free_memory_between_blocks_in_use_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", _RELEASE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 50_000, "of some 100 MB freed"
