"""``python -m service.cli``: the command ``ppl``."""

from .main import main

main()
