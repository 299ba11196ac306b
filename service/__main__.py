"""``python -m service``: the gateway alone."""

from .serve import main

main()
