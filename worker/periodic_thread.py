"""A background thread that repeats a call and survives its failures."""

from __future__ import annotations

import logging
import threading

from .redis_retries import OUTAGES, OutageLog

logger = logging.getLogger(__name__)


class PeriodicThread:
    """Base of a daemon thread that calls `run_once` repeatedly.

    Args:
        name: of the thread; also begins its log lines.
        every_s: pause between two calls.
        outages: errors that are logged once per outage, without a traceback.
    """

    def __init__(self, name: str, every_s: float, outages: tuple[type[Exception], ...] = OUTAGES) -> None:
        self._name = name
        self._every_s = every_s
        self._outages = outages
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for a running call."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def run_once(self) -> None:
        """Do one round of work."""
        raise NotImplementedError

    def _run(self) -> None:
        log = OutageLog(self._name)
        while not self._done.is_set():
            try:
                self.run_once()
                log.log_success()
            except self._outages as error:
                log.log_failure(error)
            except Exception:  # the thread must survive any failed round
                logger.exception("%s: a round failed", self._name)
            self._done.wait(self._every_s)
