"""The client and the one that is awaited are the same calls.

After a change in ``service/aio``: ``PPL_WRITE_CLIENT=1 pytest tests/service/test_client_generation.py``.
"""

from __future__ import annotations

import os

from .client_generation import made


def test_client_is_what_is_made_of_its_source() -> None:
    for path, text in made().items():
        if os.environ.get("PPL_WRITE_CLIENT"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what is made of service/aio; see above"
