"""Set the wall clock that one part of the platform sees, by a file; Python imports this module at its start.

PPL_TEST_CLOCKS names a folder with a file of each part, named by words of its command line: seconds to add.
``time.time``, ``time.time_ns`` and ``datetime.now`` follow it. The monotonic clock and what is not written in Python
do not.
"""

from __future__ import annotations

import datetime as datetime_module
import os
import sys
import time
from typing import Any

_READ_EVERY_S = 0.02
_time, _time_ns, _monotonic, _datetime = time.time, time.time_ns, time.monotonic, datetime_module.datetime


class _Clock:
    def __init__(self, path: str) -> None:
        self._path, self._read_at, self._offset_s = path, float("-inf"), 0

    def offset_s(self) -> int:
        if _monotonic() - self._read_at > _READ_EVERY_S:
            with open(self._path) as file:
                self._offset_s = int(file.read())
            self._read_at = _monotonic()
        return self._offset_s


class _AnyDatetime(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _datetime)


def _set(clock: _Clock) -> None:
    class Shifted(_datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz: datetime_module.tzinfo | None = None) -> _datetime:  # type: ignore[override]
            return _datetime.now(tz) + datetime_module.timedelta(seconds=clock.offset_s())

    time.time = lambda: _time() + clock.offset_s()
    time.time_ns = lambda: _time_ns() + clock.offset_s() * 10**9
    Shifted.__name__ = Shifted.__qualname__ = "datetime"
    datetime_module.datetime = Shifted  # type: ignore[misc]


_folder, _words = os.environ.get("PPL_TEST_CLOCKS"), " ".join(sys.orig_argv)
for _name in os.listdir(_folder) if _folder else ():
    if not _name.startswith(".") and _name in _words:
        _set(_Clock(os.path.join(_folder or "", _name)))
        break
