"""Pictures, videos, and the archives that they come in."""

from typing import Literal

Mode = Literal["stills", "clips"]
