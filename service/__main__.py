"""Run the gateway: ``python -m service``."""

from service.gateway.serve import main

main()
