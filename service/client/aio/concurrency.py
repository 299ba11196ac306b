"""Non-blocking sleep and threads; :mod:`service.client.sync.concurrency` is the blocking counterpart."""

from asyncio import sleep as sleep
from asyncio import to_thread as to_thread
