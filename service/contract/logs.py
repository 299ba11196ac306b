"""The log of gateway and workers, as text or as JSON, and the ids that its lines have."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog

# as they stand in messages: "checkpoint saved: job=… step=…"
_IDS = re.compile(r"\b(request|batch|job|dataset|estimate|category|version|worker)=([^\s:;()]+)")


def configure_logging(level: str, log_format: str, text: str) -> logging.StreamHandler[TextIO]:
    """Log to stderr, in the given format of text or as one JSON object a line; return the handler."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[
                    structlog.stdlib.add_log_level,
                    structlog.stdlib.add_logger_name,
                    structlog.processors.TimeStamper(fmt="iso", key="time"),
                    _add_ids,
                    structlog.contextvars.merge_contextvars,
                ],
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(ensure_ascii=False),
                ],
            )
        )
    else:
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
    return handler


def bind_ids(**ids: str) -> AbstractContextManager[None]:
    """Give ids to every JSON line that this thread logs during the block."""
    return structlog.contextvars.bound_contextvars(**{name: value for name, value in ids.items() if value})


def _add_ids(_: Any, __: str, event: Any) -> Any:
    for name, value in _IDS.findall(str(event["event"])):
        event.setdefault(name, value.rstrip(","))
    request_id = getattr(event.get("_record"), "correlation_id", "-")
    if request_id not in (None, "-"):
        event.setdefault("request", request_id)
    return event
