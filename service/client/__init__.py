"""A client of the HTTP API; :mod:`service.aio` has the same methods as coroutines.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as ppl:
        job = ppl.wait(ppl.train("bird", "pictures/").id)
        estimate = ppl.estimate("bird", ["one.jpg", "two.jpg"])

Methods raise subclasses of ClientError (:mod:`service.client.errors`).
"""

from .errors import APIError, ClientError, InputError, Unreachable
from .sync.client import Client
from .types import Estimate, History, Job, JobStatus, Memory, Prior, PriorEntry, png_bytes

__all__ = [
    "APIError",
    "Client",
    "ClientError",
    "Estimate",
    "History",
    "InputError",
    "Job",
    "JobStatus",
    "Memory",
    "Prior",
    "PriorEntry",
    "Unreachable",
    "png_bytes",
]
