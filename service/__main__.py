"""``python -m service``: the gateway alone."""

from service.gateway.serve import main

main()
